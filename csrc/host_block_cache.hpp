// Blocks that one card, or the host, gave back, kept by size for the next request: asking the operating system anew
// would cost a page fault for every 4 KiB at first touch. They are in no ledger; with a card's used bytes they stay
// within its capacity.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace poolrt::host_driver {

class BlockCache {
 public:
  void* take(std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(nbytes);
    if (found == blocks_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    held_nbytes_ -= nbytes;
    return block;
  }

  // True if the block is kept; else it is still the caller's.
  bool keep(void* block, std::size_t nbytes, std::size_t room_nbytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (nbytes > room_nbytes || held_nbytes_ > room_nbytes - nbytes) return false;
    try {
      blocks_[nbytes].push_back(block);
    } catch (const std::bad_alloc&) {
      return false;
    }
    held_nbytes_ += nbytes;
    return true;
  }

  void trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_all();
  }

  void trim_beyond(std::size_t room_nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (held_nbytes_ > room_nbytes) free_all();
  }

 private:
  void free_all() {
    for (auto& [nbytes, blocks] : blocks_) {
      for (void* block : blocks) std::free(block);
    }
    blocks_.clear();
    held_nbytes_ = 0;
  }

  std::mutex mutex_;
  std::unordered_map<std::size_t, std::vector<void*>> blocks_;
  std::size_t held_nbytes_ = 0;
};

}  // namespace poolrt::host_driver
