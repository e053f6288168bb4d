// What is reserved, and what is mapped where. Questions only: the owner keeps it in step with the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>

#include "driver.hpp"
#include "host_address_range.hpp"

namespace poolrt::host_driver {

struct Mapping {
  std::size_t nbytes;
  Pages pages;
  int place;
  std::uint32_t allowed = 0;  // one bit for every place that may touch it
};

//     ranges:     |<------------- reserved ------------->|        |<---- reserved ---->|
//     mappings:   | card 0 | card 1 |        | host |             | card 0 |
struct AddressMap {
  std::map<Address, AddressRange> ranges;
  std::map<Address, Mapping> mappings;

  bool in_one_range(Address at, std::size_t nbytes) const {
    const auto after = ranges.upper_bound(at);
    if (after == ranges.begin()) return false;
    const AddressRange& range = std::prev(after)->second;
    return at < range.end() && nbytes <= range.end() - at;
  }

  bool outside_of_ranges(Address at, std::size_t nbytes) const {
    const auto next = ranges.lower_bound(at + nbytes);
    return next == ranges.begin() || std::prev(next)->second.end() <= at;
  }

  bool something_mapped(Address at, std::size_t nbytes) const {
    const auto next = mappings.lower_bound(at + nbytes);
    if (next == mappings.begin()) return false;
    const auto& [begin, mapping] = *std::prev(next);
    return begin + mapping.nbytes > at;
  }

  bool made_of_whole_mappings(Address at, std::size_t nbytes) const {
    Address next = at;
    while (next < at + nbytes) {
      const auto mapping = mappings.find(next);
      if (mapping == mappings.end()) return false;
      next += mapping->second.nbytes;
    }
    return next == at + nbytes;
  }

  // The mapping that holds `at`, or the end.
  std::map<Address, Mapping>::const_iterator holding(Address at) const {
    const auto after = mappings.upper_bound(at);
    if (after == mappings.begin()) return mappings.end();
    const auto found = std::prev(after);
    return at - found->first < found->second.nbytes ? found : mappings.end();
  }
};

}  // namespace poolrt::host_driver
