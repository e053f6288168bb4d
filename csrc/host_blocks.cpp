//     block:   | header, 64 bytes: card, charge, owners | what the caller sees ... |
//
// The header sits in front of the block because torch's raw_allocate hands out nothing but the pointer.
#include "host_blocks.hpp"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>

#include "host_machine.hpp"

namespace poolrt::host_driver {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kGranularity = 512;
constexpr std::size_t kCachedFrom = 64 << 10;             // smaller blocks come from malloc's own caches
constexpr std::size_t kKeptForTheHost = 256 << 20;        // a model's outputs come back to the host at every step
constexpr std::uint64_t kLiveBlock = 0x706f6f6c72743164;  // says that a pointer is one of ours

struct alignas(kAlignment) BlockHeader {
  std::uint64_t mark;
  std::size_t nbytes;  // without the header, as charged to the card
  int card;
  std::atomic<int> owners;
};
static_assert(sizeof(BlockHeader) == kAlignment);

BlockHeader* header_of(void* pointer) {
  return reinterpret_cast<BlockHeader*>(static_cast<char*>(pointer) - sizeof(BlockHeader));
}

std::size_t rounded(std::size_t nbytes) { return (nbytes + kGranularity - 1) / kGranularity * kGranularity; }

void* fresh_block(int place, std::size_t nbytes) {
  if (place != kHostMemory) machine().trim_if_short(place);
  void* raw = nullptr;
  if (posix_memalign(&raw, kAlignment, nbytes + sizeof(BlockHeader)) == 0) return raw;
  machine().cache(place).trim();
  return posix_memalign(&raw, kAlignment, nbytes + sizeof(BlockHeader)) == 0 ? raw : nullptr;
}

// Whether the place keeps a block for its next request.
bool kept(BlockHeader* header, int place, std::size_t nbytes) {
  if (nbytes < kCachedFrom) return false;
  const std::size_t room = place == kHostMemory ? kKeptForTheHost : machine().ledger(place).free_nbytes();
  return machine().cache(place).keep(header, nbytes, room);
}

}  // namespace

int block_allocate(int card, std::size_t nbytes, void** pointer) {
  *pointer = nullptr;
  if (!machine().is_place(card)) return kInvalidDevice;
  if (nbytes == 0) return kSuccess;
  if (nbytes > std::numeric_limits<std::size_t>::max() - sizeof(BlockHeader) - kGranularity) return kOutOfMemory;
  const std::size_t whole = rounded(nbytes);
  const bool charged = card != kHostMemory;
  if (charged && !machine().ledger(card).charge(whole)) return kOutOfMemory;
  void* raw = whole >= kCachedFrom ? machine().cache(card).take(whole) : nullptr;
  if (raw == nullptr) raw = fresh_block(card, whole);
  if (raw == nullptr) {
    if (charged) machine().ledger(card).undo_charge(whole);
    return kOperatingSystem;
  }
  *pointer = static_cast<char*>(raw) + sizeof(BlockHeader);
  new (raw) BlockHeader{kLiveBlock, whole, card, {1}};
  return kSuccess;
}

int block_retain(void* pointer) {
  if (pointer == nullptr) return kSuccess;
  if (header_of(pointer)->mark != kLiveBlock) return kNotFound;
  header_of(pointer)->owners.fetch_add(1, std::memory_order_relaxed);
  return kSuccess;
}

int block_free(void* pointer) {
  if (pointer == nullptr) return kSuccess;
  BlockHeader* header = header_of(pointer);
  if (header->mark != kLiveBlock) return kNotFound;
  if (header->owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return kSuccess;
  const int card = header->card;
  const std::size_t nbytes = header->nbytes;
  header->mark = 0;
  if (card != kHostMemory) machine().ledger(card).discharge(nbytes);
  if (!kept(header, card, nbytes)) std::free(header);
  return kSuccess;
}

int block_card(void* pointer, int* card) {
  if (pointer == nullptr || header_of(pointer)->mark != kLiveBlock) return kNotFound;
  *card = header_of(pointer)->card;
  return kSuccess;
}

}  // namespace poolrt::host_driver
