#include "vcard_memory.hpp"

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#include "vcard_card.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {
namespace {

// Blocks that torch's own allocator handed out before this library was loaded come back here too: oneDNN frees through
// raw_deallocate, which asks the allocator of today for its deleter.
c10::DeleterFnPtr delete_foreign_block = nullptr;

// A pool's blocks begin at multiples of 512; nothing else need be looked up. The header in front of an ordinary block
// must not be read before this was asked: in front of a pool's block there may be nothing.
bool may_be_pooled(void* block) {
  constexpr std::uintptr_t kPoolAlignment = 512;
  return pools_in_use() && reinterpret_cast<std::uintptr_t>(block) % kPoolAlignment == 0;
}

void release(void* block) {
  if (C10_UNLIKELY(may_be_pooled(block)) && pools().free(block) != kNotFound) return;
  if (host().memory_free(block) == kNotFound) delete_foreign_block(block);
}

Watcher watcher{};

void release_watched(void* block) {
  watcher.freed(block);
  release(block);
}

c10::DataPtr owned(int home, void* block, c10::Device device) {
  const bool watched = side_streams_exist.load(std::memory_order_relaxed) && home != kHostMemory && block != nullptr;
  return {block, block, C10_UNLIKELY(watched) && watcher.made(home, block) ? &release_watched : &release, device};
}

[[noreturn]] void raise_card_full(int card, std::size_t nbytes) {
  Ledger now{};
  host().ledger(card, &now);
  const std::size_t free_nbytes = now.capacity_nbytes - std::min(now.used_nbytes, now.capacity_nbytes);
  using c10::CachingDeviceAllocator::format_size;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "vcard:", card, " is out of memory. Tried to allocate ",
                   format_size(nbytes), ". vcard:", card, " has a capacity of ", format_size(now.capacity_nbytes),
                   " of which ", format_size(free_nbytes), " is free.");
}

[[noreturn]] void raise_host_full(std::size_t nbytes) {
  TORCH_CHECK_WITH(OutOfMemoryError, false, "the host is out of memory: tried to allocate ", nbytes, " bytes");
}

// True if this thread is inside a pool that has `card`: then the block is the pool's.
bool allocate_in_pool(int card, std::size_t nbytes, void** block) {
  const int status = pools().allocate(card, nbytes, block);
  if (status == kNotFound) return false;
  TORCH_CHECK_WITH(OutOfMemoryError, status != kOutOfMemory, "vcard:", card, ": ", pools().last_message());
  TORCH_CHECK(status == kSuccess, "vcard:", card, ": ", pools().last_message());
  return true;
}

// `home` is a card or kHostMemory.
c10::DataPtr allocate(int home, std::size_t nbytes, c10::Device device) {
  void* block = nullptr;
  if (C10_UNLIKELY(home != kHostMemory && pools_in_use()) && allocate_in_pool(home, nbytes, &block)) {
    return owned(home, block, device);
  }
  const int status = host().memory_allocate(home, nbytes, &block);
  if (C10_LIKELY(status == kSuccess)) return owned(home, block, device);
  if (status == kInvalidDevice) check_ordinal(home);
  if (status == kOutOfMemory && home != kHostMemory) raise_card_full(home, nbytes);
  raise_host_full(nbytes);
}

class CpuAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t nbytes) override {
    return vcard::allocate(birth_card(), nbytes, c10::Device(c10::kCPU));
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, std::size_t nbytes) const override {
    default_copy_data(target, source, nbytes);
  }
};

using c10::CachingDeviceAllocator::DeviceStats;

class CardAllocator final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(std::size_t nbytes) override { return allocate_on_card(current_card(), nbytes); }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* target, const void* source, std::size_t nbytes) const override {
    default_copy_data(target, source, nbytes);
  }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}

  DeviceStats getDeviceStats(c10::DeviceIndex card) override {
    const Ledger now = ledger(card);
    DeviceStats stats;
    for (auto* sum : {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*sum)[0].current = static_cast<int64_t>(now.used_nbytes);
      (*sum)[0].peak = static_cast<int64_t>(now.peak_nbytes);
    }
    stats.num_device_alloc = static_cast<int64_t>(now.allocation_count);
    stats.num_ooms = static_cast<int64_t>(now.refusal_count);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex card) override { host().reset_peak(card); }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex card) override {
    check_ordinal(card);
    std::size_t free_nbytes = 0;
    std::size_t total_nbytes = 0;
    host().driver.memory_info(card, &free_nbytes, &total_nbytes);
    return {free_nbytes, total_nbytes};
  }

 private:
  static Ledger ledger(int card) {
    check_ordinal(card);
    Ledger now{};
    host().ledger(card, &now);
    return now;
  }
};

// Never destroyed, as torch may free tensors after static destructors have run.
CpuAllocator* the_cpu_allocator() {
  static auto* allocator = new CpuAllocator;
  return allocator;
}

CardAllocator* the_card_allocator() {
  static auto* allocator = new CardAllocator;
  return allocator;
}

}  // namespace

void install_allocators() {
  constexpr uint8_t kAboveTorchsOwn = 100;
  delete_foreign_block = c10::GetCPUAllocator()->raw_deleter();
  c10::SetCPUAllocator(the_cpu_allocator(), kAboveTorchsOwn);
  c10::SetAllocator(kVcard, the_card_allocator());
}

c10::Allocator* card_allocator() { return the_card_allocator(); }
c10::Allocator* cpu_allocator() { return the_cpu_allocator(); }

c10::DataPtr allocate_on_card(int card, std::size_t nbytes) { return allocate(card, nbytes, device_of(card)); }

c10::DataPtr share_memory(const c10::Storage& storage, c10::Device device) {
  const c10::DataPtr& memory = storage.data_ptr();
  void* pointer = storage.unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get();
  if (pointer == nullptr) return {nullptr, device};
  if (C10_LIKELY(is_ours(memory))) {
    if (C10_LIKELY(!may_be_pooled(pointer)) || pools().retain(pointer) == kNotFound) host().memory_retain(pointer);
    return {pointer, pointer, &release, device};
  }
  // Memory that somebody else owns (from_blob, DLPack): keep its storage instead.
  auto owner = std::make_unique<c10::Storage>(storage);
  return {pointer, owner.release(), [](void* held) { delete static_cast<c10::Storage*>(held); }, device};
}

bool is_ours(const c10::DataPtr& memory) {
  return C10_LIKELY(memory.get_deleter() == &release) || memory.get_deleter() == &release_watched;
}

void set_watcher(const Watcher& chosen) { watcher = chosen; }
bool is_watched(const c10::DataPtr& memory) { return memory.get_deleter() == &release_watched; }
void watch(const c10::DataPtr& memory) {
  const_cast<c10::DataPtr&>(memory).compare_exchange_deleter(&release, &release_watched);
}

bool lives_on(const c10::StorageImpl& storage, int card) {
  if (storage.nbytes() == 0) return true;
  if (!is_ours(storage.data_ptr())) return false;
  int home = kHostMemory;
  void* block = const_cast<c10::StorageImpl&>(storage)._mutable_data_ptr_no_checks().get();
  if (C10_UNLIKELY(may_be_pooled(block)) && pools().card(block, &home) == kSuccess) return home == card;
  return host().memory_card(block, &home) == kSuccess && home == card;
}

void resize_storage(c10::StorageImpl& storage, std::size_t nbytes) {
  c10::DataPtr block = allocate_on_card(storage.device().index(), nbytes);
  const std::size_t kept = std::min(nbytes, storage.nbytes());
  if (kept != 0) std::memcpy(block.get(), storage.data(), kept);
  storage.set_data_ptr_noswap(std::move(block));
  storage.set_nbytes(nbytes);
}

}  // namespace poolrt::vcard
