// No exception crosses a driver table.
#pragma once

#include <new>

#include "driver.hpp"

namespace poolrt {

// The function, as it stands in a table: memory of our own that ran out is a status like any other.
template <auto function, typename... Arguments>
int guarded(Arguments... arguments) noexcept {
  try {
    return function(arguments...);
  } catch (const std::bad_alloc&) {
    return kOperatingSystem;
  }
}

}  // namespace poolrt
