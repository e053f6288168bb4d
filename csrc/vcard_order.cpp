#include "vcard_order.hpp"

#include <algorithm>

namespace poolrt::vcard {

bool StreamOrder::knows(Key stream, Key other, Position position) const {
  const auto reaches = [&](const Known& known) {
    const auto found = known.find(other);
    return found != known.end() && found->second >= position;
  };
  const auto own = known_.find(stream);
  return stream == other || reaches(known_to_program_) || (own != known_.end() && reaches(own->second));
}

void StreamOrder::finished_card(int card) {
  for (const auto& [stream, position] : done_) {
    if (card_of(stream) == card) finished(stream);
  }
}

StreamOrder::Known StreamOrder::known_after(Key stream) const {
  const auto own = known_.find(stream);
  Known known = own == known_.end() ? Known{} : own->second;
  const auto done = done_.find(stream);
  if (done != done_.end()) known[stream] = done->second;
  return known;
}

void StreamOrder::learn_event(Known& known, Event event) {
  const auto found = events_.find(event);
  if (found != events_.end()) learn(known, found->second);
}

void StreamOrder::learn(Known& known, const Known& more) {
  for (const auto& [stream, position] : more) {
    Position& reached = known[stream];
    reached = std::max(reached, position);
  }
}

}  // namespace poolrt::vcard
