#include "host_machine.hpp"

#include <limits>

namespace poolrt::host_driver {

bool HostMachine::reaches(int card, int place) const {
  return place == kHostMemory || place == card || peers_[card][place].load(std::memory_order_relaxed);
}

void HostMachine::set_peer(int card, int peer, bool possible) {
  peers_[card][peer].store(possible, std::memory_order_relaxed);
}

void HostMachine::set_capacity(int place, std::size_t nbytes) {
  ledger(place).set_capacity(nbytes);
  if (place != kHostMemory) cache(place).trim();
}

void HostMachine::configure(int cards, const std::size_t* capacities) {
  set_capacity(kHostMemory, std::numeric_limits<std::size_t>::max());
  for (int card = 0; card < kMaxCards; ++card) {
    set_capacity(card, card < cards ? capacities[card] : 0);
    for (int peer = 0; peer < kMaxCards; ++peer) set_peer(card, peer, card != peer);
  }
  cards_.store(cards, std::memory_order_relaxed);
}

// Never destroyed: tensors may be freed after static destructors have run.
HostMachine& machine() {
  static auto* instance = [] {
    auto* made = new HostMachine;
    made->ledger(kHostMemory).set_capacity(std::numeric_limits<std::size_t>::max());
    return made;
  }();
  return *instance;
}

}  // namespace poolrt::host_driver
