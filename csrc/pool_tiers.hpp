// The places a pool may use: how much each may hold and holds, which card reaches which, and in which order a home
// fills them. Bytes are charged when pages were made and discharged when they were released, so that `mapped` is what
// the driver has given at any moment.
#pragma once

#include <cstddef>
#include <vector>

#include "driver.hpp"
#include "pool_placement.hpp"
#include "vmm.hpp"

namespace poolrt {

struct CardShare {
  int ordinal;  // of the driver; two cards of a pool may share one
  std::size_t limit_nbytes;
};

struct PoolOptions {
  std::vector<CardShare> cards;
  std::size_t host_limit_nbytes = 0;  // 0: no host tier
  std::size_t chunk_nbytes = std::size_t{64} << 20;
  std::size_t cache_limit_nbytes = SIZE_MAX;
  std::vector<std::vector<int>> peers;  // for each card the others, nearest first; empty: by index
};

struct TierUse {
  int place;
  std::size_t limit_nbytes;
  std::size_t mapped_nbytes;
  std::size_t peak_nbytes;
};

class Tiers {
 public:
  // Asks the driver for granularities and reach. kInvalidValue for no card, too many, or peers that are no cards.
  int open(const CountedDriver& driver, const PoolOptions& options);

  int cards() const { return static_cast<int>(ordinals_.size()); }
  bool has_card(int card) const { return card >= 0 && card < cards(); }
  int ordinal(int place) const { return place == kHostMemory ? kHostMemory : ordinals_[place]; }
  int card_of_ordinal(int ordinal) const;  // the first; kHostMemory if there is none
  std::size_t granule_nbytes() const { return granule_nbytes_; }

  bool reaches(int card, int place) const { return place == kHostMemory || reach_[card][place]; }
  const std::vector<int>& order_from(int home) const { return orders_[home]; }  // home, peers in reach, host
  std::size_t room(int place) const;
  std::vector<Piece> rooms_from(int home) const;

  // The ordinals, each once, of the cards that reach every one of `extents`.
  std::vector<int> with_access(const std::vector<Piece>& extents) const;

  void charge(int place, std::size_t nbytes);
  void discharge(int place, std::size_t nbytes) { at(place).mapped_nbytes -= nbytes; }
  int set_limit(int place, std::size_t nbytes);  // kNotSupported for a host tier that this driver cannot make
  std::size_t mapped() const;
  const std::vector<TierUse>& use() const { return use_; }  // the cards in order, then the host

 private:
  int ask_granularity(const CountedDriver& driver, std::size_t host_limit_nbytes);
  int ask_reach(const CountedDriver& driver);
  int put_in_order(const std::vector<std::vector<int>>& peers);
  TierUse& at(int place) { return place == kHostMemory ? use_.back() : use_[place]; }
  const TierUse& at(int place) const { return place == kHostMemory ? use_.back() : use_[place]; }

  std::vector<int> ordinals_;
  std::vector<TierUse> use_;
  std::vector<std::vector<bool>> reach_;
  std::vector<std::vector<int>> orders_;
  std::size_t granule_nbytes_ = 0;
  int host_status_ = kSuccess;  // why there can be no host tier
};

}  // namespace poolrt
