// Blocks that one card, or the host, gave back, kept by size for the next request: asking the operating system anew
// would cost a page fault for every 4 KiB at first touch. They are in no ledger; with a card's used bytes they stay
// within its capacity.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <deque>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>

namespace poolrt::host_driver {

class BlockCache {
 public:
  void* take(std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_size_.find(nbytes);
    if (found == by_size_.end() || found->second.empty()) return nullptr;
    const auto newest = found->second.back();
    found->second.pop_back();
    void* block = newest->block;
    by_age_.erase(newest);
    held_nbytes_ -= nbytes;
    return block;
  }

  // True if the block is kept, in place of older ones where there is not room for all; else it is still the caller's.
  bool keep(void* block, std::size_t nbytes, std::size_t room_nbytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (nbytes > room_nbytes) return false;
    free_beyond(room_nbytes - nbytes);
    try {
      auto& same_size = by_size_[nbytes];
      by_age_.push_back({block, nbytes});
      try {
        same_size.push_back(std::prev(by_age_.end()));
      } catch (const std::bad_alloc&) {
        by_age_.pop_back();
        return false;
      }
    } catch (const std::bad_alloc&) {
      return false;
    }
    held_nbytes_ += nbytes;
    return true;
  }

  void trim() { trim_beyond(0); }

  void trim_beyond(std::size_t room_nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_beyond(room_nbytes);
  }

 private:
  struct Entry {
    void* block;
    std::size_t nbytes;
  };

  // The oldest first.
  void free_beyond(std::size_t room_nbytes) {
    while (held_nbytes_ > room_nbytes) {
      const Entry oldest = by_age_.front();
      by_age_.pop_front();
      by_size_[oldest.nbytes].pop_front();
      held_nbytes_ -= oldest.nbytes;
      std::free(oldest.block);
    }
  }

  std::mutex mutex_;
  std::list<Entry> by_age_;
  std::unordered_map<std::size_t, std::deque<std::list<Entry>::iterator>> by_size_;  // each in the order of age
  std::size_t held_nbytes_ = 0;
};

}  // namespace poolrt::host_driver
