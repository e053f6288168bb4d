// What one place (a card, or the host) has granted.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "driver.hpp"

namespace poolrt::host_driver {

// A charge is granted or refused in one step, so `used` never passes the capacity, not even for an instant, and a
// refused thread cannot make another one fail.
class alignas(64) PlaceLedger {
 public:
  bool charge(std::size_t nbytes) {
    std::size_t used = used_.load(std::memory_order_relaxed);
    do {
      const std::size_t capacity = capacity_.load(std::memory_order_relaxed);
      if (used > capacity || nbytes > capacity - used) {
        refusals_.fetch_add(1, std::memory_order_relaxed);
        return false;
      }
    } while (!used_.compare_exchange_weak(used, used + nbytes, std::memory_order_relaxed));
    raise_peak(used + nbytes);
    allocations_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }

  void discharge(std::size_t nbytes) { used_.fetch_sub(nbytes, std::memory_order_relaxed); }

  void undo_charge(std::size_t nbytes) {
    discharge(nbytes);
    allocations_.fetch_sub(1, std::memory_order_relaxed);
  }

  void reset_peak() { peak_.store(used_.load(std::memory_order_relaxed), std::memory_order_relaxed); }
  void set_capacity(std::size_t nbytes) { capacity_.store(nbytes, std::memory_order_relaxed); }
  std::size_t capacity() const { return capacity_.load(std::memory_order_relaxed); }

  std::size_t free_nbytes() const {
    const std::size_t used = used_.load(std::memory_order_relaxed);
    const std::size_t most = capacity();
    return used < most ? most - used : 0;
  }

  Ledger read() const {
    return {used_.load(std::memory_order_relaxed), peak_.load(std::memory_order_relaxed), capacity(),
            allocations_.load(std::memory_order_relaxed), refusals_.load(std::memory_order_relaxed)};
  }

 private:
  void raise_peak(std::size_t used) {
    std::size_t peak = peak_.load(std::memory_order_relaxed);
    while (used > peak && !peak_.compare_exchange_weak(peak, used, std::memory_order_relaxed)) {
    }
  }

  std::atomic<std::size_t> used_{0};
  std::atomic<std::size_t> peak_{0};
  std::atomic<std::size_t> capacity_{0};
  std::atomic<std::uint64_t> allocations_{0};
  std::atomic<std::uint64_t> refusals_{0};
};

}  // namespace poolrt::host_driver
