// Moving a block in place: new pages under the same addresses.
//
//     1  a fresh segment is built for the new home, at addresses of its own
//     2  every card that may touch the block is drained, and its bytes are copied          (without the lock)
//     3  the block's addresses are mapped to the fresh pages; on a failure, to the old ones again
//     4  the old pages go with the fresh segment's addresses
#include <utility>

#include "pool.hpp"
#include "pool_message.hpp"

namespace poolrt {

int Pool::move(Address address, int home) {
  Lock lock(mutex_);
  Block* block = nullptr;
  while (true) {
    if (const int status = check_open(home)) return status;
    const auto found = live_.find(address);
    if (found == live_.end() || found->second->owners == 0) {
      set_pool_message("no live block of this pool begins at the address that was to be moved");
      return kNotFound;
    }
    block = found->second;
    if (!block->segment->moving) break;
    changed_.wait(lock);
  }
  if (const int status = check_movable(*block)) return status;
  Segment& segment = *block->segment;
  if (segment.home() == home && segment.far_nbytes() == 0) return kSuccess;

  const std::size_t far_before = block->far_nbytes();
  const std::size_t holes_nbytes = holes_.withdraw(segment);
  leaving_nbytes_ += holes_nbytes;
  segment.moving = true;
  const int status = move_pinned(lock, segment, home);
  segment.moving = false;
  leaving_nbytes_ -= holes_nbytes;
  holes_.restore(segment);
  spilled_nbytes_ += block->far_nbytes() - far_before;
  if (status != kSuccess) refuse(status, segment.nbytes(), home);
  if (block->owners == 0) finish(block);
  changed_.notify_all();
  return status;
}

int Pool::check_movable(const Block& block) const {
  for (const Block* other = block.segment->first; other != nullptr; other = other->after) {
    if (other == &block || other->state == BlockState::kHole) continue;
    set_pool_message("a block of " + sized(block.nbytes) + " shares its segment with other blocks and cannot move; " +
                     "blocks of more than " + sized(kLargestSharing) + " can");
    return kNotSupported;
  }
  return kSuccess;
}

int Pool::move_pinned(Lock& lock, Segment& segment, int home) {
  std::unique_ptr<Segment> fresh;
  if (const int status = obtain_segment(lock, segment.nbytes(), home, &fresh)) return status;
  leaving_nbytes_ += segment.nbytes();
  ++leaving_count_;
  int status = fill_unlocked(lock, *fresh, segment);
  if (status == kSuccess) status = segment.exchange_pages(*fresh);
  leaving_nbytes_ -= segment.nbytes();
  --leaving_count_;
  demolish(std::move(fresh));
  return status;
}

int Pool::fill_unlocked(Lock& lock, const Segment& fresh, const Segment& old) {
  if (const int status = drain(lock, old.ordinals_with_access())) return status;
  lock.unlock();
  const int status = fresh.copy_from(old);
  lock.lock();
  return status;
}

}  // namespace poolrt
