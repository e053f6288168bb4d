// A piece of the address space that nobody may touch, until memory is put into parts of it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <utility>

#include "driver.hpp"

namespace poolrt::host_driver {

class AddressRange {
 public:
  // Nothing when the address space, or the system's number of mappings, is used up. `alignment` is a power of two.
  static std::optional<AddressRange> reserve(std::size_t nbytes, std::size_t alignment);

  AddressRange(AddressRange&& other) noexcept
      : begin_(std::exchange(other.begin_, 0)), nbytes_(std::exchange(other.nbytes_, 0)) {}
  AddressRange& operator=(AddressRange&&) = delete;
  ~AddressRange();  // whatever lies in it goes with it

  Address begin() const { return begin_; }
  Address end() const { return begin_ + nbytes_; }
  std::size_t nbytes() const { return nbytes_; }

  // False when the system refuses; the range is as it was then.
  static bool place_file(Address at, std::size_t nbytes, int descriptor, off_t offset);
  static bool place_nothing(Address at, std::size_t nbytes);
  static bool allow_touch(Address at, std::size_t nbytes);

 private:
  AddressRange(Address begin, std::size_t nbytes) : begin_(begin), nbytes_(nbytes) {}

  Address begin_;
  std::size_t nbytes_;
};

}  // namespace poolrt::host_driver
