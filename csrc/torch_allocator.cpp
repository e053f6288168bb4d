// Function pairs for torch.cuda.memory.CUDAPluggableAllocator, which knows an allocator by two names in a library and
// passes nothing but the device's ordinal: so there is one pair for each (pool, home), poolrt_malloc_0 to _15. torch
// cannot check the signatures; they are those of torch/csrc/cuda/CUDAPluggableAllocator.h:
//
//     void* malloc(ssize_t size, int device, cudaStream_t stream)
//     void free(void* pointer, ssize_t size, int device, cudaStream_t stream)
//
// No Python and no interpreter lock here, and no exception leaves it.
#include "torch_allocator.hpp"

#include <sys/types.h>

#include <array>
#include <memory>
#include <mutex>
#include <utility>

#include "pool.hpp"
#include "pool_message.hpp"
#include "pool_registry.hpp"

namespace poolrt {
namespace {

struct Slot {
  std::shared_ptr<Pool> pool;
  int home = 0;
};

struct Slots {
  std::mutex mutex;
  std::array<Slot, kAllocatorSlots> slots;
};

// Never destroyed: torch may free memory after static destructors have run.
Slots& slots() {
  static auto* instance = new Slots;
  return *instance;
}

Slot slot_at(int number) {
  const std::lock_guard<std::mutex> lock(slots().mutex);
  return slots().slots[number];
}

void* allocate_for_torch(int number, ssize_t nbytes, Stream stream) noexcept {
  try {
    const Slot slot = slot_at(number);
    Address address = 0;
    if (slot.pool == nullptr || nbytes < 0) return nullptr;
    if (slot.pool->allocate(static_cast<std::size_t>(nbytes), slot.home, stream, &address) != kSuccess) return nullptr;
    return reinterpret_cast<void*>(address);
  } catch (...) {
    return nullptr;
  }
}

// torch cannot be told that a free failed: where no event can be recorded, the card is drained instead.
void free_for_torch(void* pointer, Stream stream) noexcept {
  try {
    const auto address = reinterpret_cast<Address>(pointer);
    Pool* pool = owner_of(address);
    LiveBlock block{};
    if (pool == nullptr || pool->find(address, &block) != kSuccess) return;
    if (pool->free(address, {{block.home, stream}}) == kSuccess) return;
    if (pool->drain_card(block.home) == kSuccess) pool->free(address);
  } catch (...) {
    set_pool_message("a block could not be freed for want of host memory; it stays allocated");
  }
}

}  // namespace

int register_pair(int slot, std::shared_ptr<Pool> pool, int home) {
  const std::lock_guard<std::mutex> lock(slots().mutex);
  if (slot < 0 || slot >= kAllocatorSlots || slots().slots[slot].pool != nullptr || home < 0 || home >= pool->cards()) {
    set_pool_message("no pair " + std::to_string(slot) + " for card " + std::to_string(home) + ": there are " +
                     std::to_string(kAllocatorSlots) + " pairs, each for one card of one pool at a time");
    return kInvalidValue;
  }
  slots().slots[slot] = {std::move(pool), home};
  return kSuccess;
}

int unregister_pair(int slot) {
  Slot gone;  // outlives the lock: the last pointer to a pool closes it
  const std::lock_guard<std::mutex> lock(slots().mutex);
  if (slot < 0 || slot >= kAllocatorSlots || slots().slots[slot].pool == nullptr) {
    set_pool_message("the pair " + std::to_string(slot) + " is not registered");
    return kInvalidValue;
  }
  gone = std::exchange(slots().slots[slot], {});
  return kSuccess;
}

}  // namespace poolrt

#define POOLRT_PAIR(number)                                                                                         \
  extern "C" __attribute__((visibility("default"))) void* poolrt_malloc_##number(ssize_t size, int, void* stream) { \
    return poolrt::allocate_for_torch(number, size, stream);                                                        \
  }                                                                                                                 \
  extern "C" __attribute__((visibility("default"))) void poolrt_free_##number(void* pointer, ssize_t, int,          \
                                                                              void* stream) {                       \
    poolrt::free_for_torch(pointer, stream);                                                                        \
  }

POOLRT_PAIR(0)
POOLRT_PAIR(1)
POOLRT_PAIR(2)
POOLRT_PAIR(3)
POOLRT_PAIR(4)
POOLRT_PAIR(5)
POOLRT_PAIR(6)
POOLRT_PAIR(7)
POOLRT_PAIR(8)
POOLRT_PAIR(9)
POOLRT_PAIR(10)
POOLRT_PAIR(11)
POOLRT_PAIR(12)
POOLRT_PAIR(13)
POOLRT_PAIR(14)
POOLRT_PAIR(15)
