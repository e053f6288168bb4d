// Which work of which stream is known to be done before other work may begin: by events and by waiting, as it would be
// on GPUs, however fast the virtual cards happen to be.
//
//     stream a    1    2 | event e                       a's second work is known to b after its wait, and to the
//     stream b                    | wait e | 1    2      program once it has waited for e, for a or for b
//
// Vector clocks: Lamport (1978), Time, Clocks, and the Ordering of Events; Mattern (1989).
#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <unordered_map>

#include "driver.hpp"

namespace poolrt::vcard {

class StreamOrder {
 public:
  using Position = std::uint64_t;
  using Key = std::int64_t;

  // A card's streams have keys of their own, its default stream (number 0) too.
  static Key key_of(const c10::Stream& stream) { return stream.id() * kMaxCards + stream.device_index(); }
  static int card_of(Key stream) { return static_cast<int>(stream % kMaxCards); }
  static c10::StreamId id_of(Key stream) { return stream / kMaxCards; }

  Position next_work(Key stream) { return ++done_[stream]; }

  void recorded(Event event, Key stream) { events_[event] = known_after(stream); }
  void forgotten(Event event) { events_.erase(event); }
  void waited(Key stream, Event event) { learn_event(known_[stream], event); }
  void waited_for_stream(Key stream, Key other) { learn(known_[stream], known_after(other)); }

  // The program itself has waited.
  void finished_event(Event event) { learn_event(known_to_program_, event); }
  void finished(Key stream) { learn(known_to_program_, known_after(stream)); }
  void finished_card(int card);

  // Whether work that comes into `stream` from now on begins after `position` of `other`.
  bool knows(Key stream, Key other, Position position) const;

 private:
  using Known = std::unordered_map<Key, Position>;

  Known known_after(Key stream) const;
  void learn_event(Known& known, Event event);
  static void learn(Known& known, const Known& more);

  std::unordered_map<Key, Position> done_;
  std::unordered_map<Key, Known> known_;
  std::unordered_map<Event, Known> events_;
  Known known_to_program_;
};

}  // namespace poolrt::vcard
