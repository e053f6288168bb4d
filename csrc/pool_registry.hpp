// Which pool an address belongs to, for callers that were given nothing but a pointer.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "driver.hpp"

namespace poolrt {

class Pool;

void register_range(Address begin, std::size_t nbytes, Pool* pool);
void forget_range(Address begin);

// Null for an address that no segment of any pool holds. A caller that owns a block keeps its pool alive by that.
Pool* owner_of(Address address);

// Pools with live blocks, and threads inside a pool. While it is 0 no pointer needs to be looked up.
std::atomic<std::uint32_t>& pool_activity();

}  // namespace poolrt
