// The pools of poolrt._C as C functions, for a separately compiled library whose tensors may lie in them: the
// virtual-card backend. Statuses as in driver.hpp; nothing is thrown.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "driver.hpp"

namespace poolrt {

struct PoolTable {
  std::uint32_t table_nbytes;  // sizeof(PoolTable) where it was filled
  std::uint32_t revision;      // kPoolTableRevision where it was filled

  // Pools with live blocks, and threads inside a pool. While it is 0, nothing below has anything to say.
  const std::atomic<std::uint32_t>* activity;

  // A block from the pool that this thread is inside for the card with the driver's ordinal `card`. kNotFound where it
  // is inside none: the memory is then to come from elsewhere.
  int (*allocate)(int card, std::size_t nbytes, void** pointer);

  // Each answers kNotFound for a pointer that no pool's block begins at.
  int (*retain)(void* pointer);
  int (*free)(void* pointer);
  int (*card)(void* pointer, int* card);  // the ordinal it was allocated for, wherever its pages are

  const char* (*last_message)();  // of this thread's last failure; never null
};

inline constexpr std::uint32_t kPoolTableRevision = 1;

const PoolTable* pool_table();

}  // namespace poolrt
