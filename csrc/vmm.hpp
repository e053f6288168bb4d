// One handle per driver resource of a segment. A handle owns what it names, moves but is never copied, and is given
// back by close(), which tells the driver's status: after a failure the handle still owns, so the caller can keep it
// and try again. A destructor that has to close and cannot reports to the driver's sink and throws nothing.
//
//     Reservation   a range of addresses      range_reserve / range_free     closed after its mappings
//     Allocation    pages of one place        pages_create / pages_release   closed after its mapping
//     Mapping       pages at an address       map / unmap                    closed first, once the cards are drained
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "driver.hpp"

namespace poolrt {

// A driver whose calls are counted: every arrow is one call.
class CountedDriver {
 public:
  explicit CountedDriver(const DriverTable& table) : table_(&table) {}
  CountedDriver(const CountedDriver&) = delete;
  CountedDriver& operator=(const CountedDriver&) = delete;

  const DriverTable* operator->() const {
    calls_.fetch_add(1, std::memory_order_relaxed);
    return table_;
  }

  std::uint64_t calls() const { return calls_.load(std::memory_order_relaxed); }
  const char* name() const { return table_->name; }
  const char* status_name(int status) const { return table_->status_name(status); }

  // The sink of destructors: how often one of them could not give back what it owned.
  void report_lost(int status) const;
  std::uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }
  int last_lost_status() const { return last_lost_status_.load(std::memory_order_relaxed); }

 private:
  const DriverTable* table_;
  mutable std::atomic<std::uint64_t> calls_{0};
  mutable std::atomic<std::uint64_t> lost_{0};
  mutable std::atomic<int> last_lost_status_{kSuccess};
};

class Reservation {
 public:
  Reservation() = default;
  Reservation(Reservation&& other) noexcept { swap(other); }
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();

  // Only into an empty handle.
  int open(const CountedDriver& driver, std::size_t nbytes, std::size_t alignment);
  int close();

  Address address() const { return address_; }
  std::size_t nbytes() const { return nbytes_; }
  bool empty() const { return address_ == 0; }

 private:
  void swap(Reservation& other) noexcept;

  const CountedDriver* driver_ = nullptr;
  Address address_ = 0;
  std::size_t nbytes_ = 0;
};

class Allocation {
 public:
  Allocation() = default;
  Allocation(Allocation&& other) noexcept { swap(other); }
  Allocation& operator=(Allocation&& other) noexcept;
  ~Allocation();

  // Only into an empty handle. `place` as the driver numbers it: a card's ordinal or kHostMemory.
  int open(const CountedDriver& driver, int place, std::size_t nbytes);
  int close();

  Pages pages() const { return pages_; }
  bool empty() const { return pages_ == 0; }

 private:
  void swap(Allocation& other) noexcept;

  const CountedDriver* driver_ = nullptr;
  Pages pages_ = 0;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept { swap(other); }
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // Only into an empty handle: the whole of `pages` from `at` on.
  int open(const CountedDriver& driver, Address at, std::size_t nbytes, Pages pages);
  int close();

  bool empty() const { return address_ == 0; }

 private:
  void swap(Mapping& other) noexcept;

  const CountedDriver* driver_ = nullptr;
  Address address_ = 0;
  std::size_t nbytes_ = 0;
};

}  // namespace poolrt
