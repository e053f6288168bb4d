// The HOST driver's machine: how many cards there are, what each has granted, and who reaches whom.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>

#include "driver.hpp"
#include "host_block_cache.hpp"
#include "host_ledger.hpp"

namespace poolrt::host_driver {

// All slots exist always: what was granted outlives a change of the number of cards and still finds its ledger.
class HostMachine {
 public:
  int cards() const { return cards_.load(std::memory_order_relaxed); }
  bool has(int card) const { return card >= 0 && card < cards(); }
  bool is_place(int place) const { return place == kHostMemory || has(place); }
  static bool has_ledger(int place) { return place >= kHostMemory && place < kMaxCards; }

  PlaceLedger& ledger(int place) { return ledgers_[place + 1]; }  // the host's comes first
  BlockCache& cache(int place) { return caches_[place + 1]; }

  bool reaches(int card, int place) const;
  void set_peer(int card, int peer, bool possible);
  void set_capacity(int place, std::size_t nbytes);
  void configure(int cards, const std::size_t* capacities);

  // Lets the card's kept blocks go if they and what it has granted are more than its capacity.
  void trim_if_short(int card) { cache(card).trim_beyond(ledger(card).free_nbytes()); }

 private:
  std::atomic<int> cards_{0};
  std::array<PlaceLedger, kMaxCards + 1> ledgers_;
  std::array<BlockCache, kMaxCards + 1> caches_;
  std::array<std::array<std::atomic<bool>, kMaxCards>, kMaxCards> peers_{};
};

HostMachine& machine();

}  // namespace poolrt::host_driver
