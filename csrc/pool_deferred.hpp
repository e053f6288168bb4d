// Blocks that were given back while streams may still use them. Each use is an event; a block is free once all of its
// events have passed. A request that names the very stream a block was used on may have it at once: what comes later
// in a stream runs later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <vector>

#include "pool_blocks.hpp"
#include "pool_tiers.hpp"
#include "vmm.hpp"

namespace poolrt {

struct StreamUse {
  int card;  // index in the pool
  Stream stream;
};

class Deferred {
 public:
  Deferred(const CountedDriver& driver, const Tiers& tiers) : driver_(&driver), tiers_(&tiers) {}

  // Records one event per use into `block`. After a failure none was recorded.
  int record(Block& block, const std::vector<StreamUse>& uses);

  void insert(Block* block);

  // Takes out the blocks that are free now. With `oldest_only` it stops at the first that is not. An event that the
  // driver cannot tell about counts as not passed.
  std::vector<Block*> take_passed(bool oldest_only);

  // A block of at least `nbytes` at `home`, at most an eighth more, that only `stream` may still use; or null.
  Block* take_for(int home, Stream stream, std::size_t nbytes);

  // A card whose draining frees something, `home` if it is one of them; kHostMemory if nothing is deferred.
  int card_to_wait_for(int home) const;

  // After `card` was drained: its events up to `number` have passed.
  void passed(int card, std::uint64_t number);
  std::uint64_t last_number() const { return number_; }

  // Destroys the events that are of no more use.
  int destroy_spent();
  bool any_spent() const { return !spent_.empty(); }

  bool empty() const { return blocks_.empty(); }
  std::size_t nbytes() const { return nbytes_; }

 private:
  bool has_passed(Block& block);
  void remove(std::list<Block*>::iterator position);

  const CountedDriver* driver_;
  const Tiers* tiers_;
  std::list<Block*> blocks_;  // the oldest first
  std::vector<Event> spent_;
  std::size_t nbytes_ = 0;
  std::uint64_t number_ = 0;
};

}  // namespace poolrt
