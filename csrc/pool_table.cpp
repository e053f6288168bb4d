#include "pool_table.hpp"

#include <new>

#include "pool.hpp"
#include "pool_active.hpp"
#include "pool_message.hpp"
#include "pool_registry.hpp"

namespace poolrt {
namespace {

// The tables' books may run out of memory themselves; that must not pass a C border.
template <typename Call>
int guarded(const Call& call) noexcept {
  try {
    return call();
  } catch (const std::bad_alloc&) {
    return kOperatingSystem;
  }
}

Address address_of(void* pointer) { return reinterpret_cast<Address>(pointer); }

int allocate(int card, std::size_t nbytes, void** pointer) {
  *pointer = nullptr;
  const ActivePool active = active_pool(card);
  if (active.pool == nullptr) return kNotFound;
  return guarded([&] {
    Address address = 0;
    const int status = active.pool->allocate_for(card, nbytes, active.home, /*stream=*/nullptr, &address);
    *pointer = reinterpret_cast<void*>(address);
    return status;
  });
}

int retain(void* pointer) {
  Pool* pool = owner_of(address_of(pointer));
  return pool == nullptr ? kNotFound : guarded([&] { return pool->retain(address_of(pointer)); });
}

// Most blocks are freed inside the pool that they came from: its own list of live blocks answers faster than the list
// of all pools' ranges.
int free_block(void* pointer) {
  Pool* here = innermost_pool();
  if (here != nullptr && guarded([&] { return here->free_if_live(address_of(pointer)); }) == kSuccess) return kSuccess;
  Pool* pool = owner_of(address_of(pointer));
  return pool == nullptr ? kNotFound : guarded([&] { return pool->free(address_of(pointer)); });
}

int card(void* pointer, int* card) {
  const Pool* pool = owner_of(address_of(pointer));
  if (pool == nullptr) return kNotFound;
  return guarded([&] {
    LiveBlock block{};
    const int status = pool->find(address_of(pointer), &block);
    *card = block.device;
    return status;
  });
}

}  // namespace

const PoolTable* pool_table() {
  static const PoolTable table = {
      sizeof(PoolTable), kPoolTableRevision, &pool_activity(), allocate, retain, free_block, card, last_pool_message,
  };
  return &table;
}

}  // namespace poolrt
