// The HOST filling of the driver table: cards made of host memory, one ledger per card, a peer matrix.
//
//     block:   | header, 64 bytes: card, charge, owners | what the caller sees ... |
//
// The header sits in front of the block because torch's raw_allocate hands out nothing but the pointer.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

#include "driver.hpp"

namespace poolrt {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kGranularity = 512;
constexpr std::size_t kCachedFrom = 64 << 10;             // smaller blocks come from malloc's own caches
constexpr std::uint64_t kLiveBlock = 0x706f6f6c72743164;  // says that a pointer is one of ours

struct alignas(kAlignment) BlockHeader {
  std::uint64_t mark;
  std::size_t charged_nbytes;
  int card;
  std::atomic<int> owners;
};
static_assert(sizeof(BlockHeader) == kAlignment);

BlockHeader* header_of(void* pointer) {
  return reinterpret_cast<BlockHeader*>(static_cast<char*>(pointer) - sizeof(BlockHeader));
}

std::size_t rounded(std::size_t nbytes) { return (nbytes + kGranularity - 1) / kGranularity * kGranularity; }

// What one card has granted. A charge is granted or refused in one step, so `used` never passes the capacity, not even
// for an instant, and a refused thread cannot make another one fail.
class alignas(kAlignment) CardLedger {
 public:
  bool charge(std::size_t nbytes) {
    std::size_t used = used_.load(std::memory_order_relaxed);
    do {
      const std::size_t capacity = capacity_.load(std::memory_order_relaxed);
      if (used > capacity || nbytes > capacity - used) {
        refusals_.fetch_add(1, std::memory_order_relaxed);
        return false;
      }
    } while (!used_.compare_exchange_weak(used, used + nbytes, std::memory_order_relaxed));
    raise_peak(used + nbytes);
    allocations_.fetch_add(1, std::memory_order_relaxed);
    return true;
  }

  void discharge(std::size_t nbytes) { used_.fetch_sub(nbytes, std::memory_order_relaxed); }

  void undo_charge(std::size_t nbytes) {
    discharge(nbytes);
    allocations_.fetch_sub(1, std::memory_order_relaxed);
  }

  void reset_peak() { peak_.store(used_.load(std::memory_order_relaxed), std::memory_order_relaxed); }
  void set_capacity(std::size_t nbytes) { capacity_.store(nbytes, std::memory_order_relaxed); }
  std::size_t capacity() const { return capacity_.load(std::memory_order_relaxed); }

  Ledger read() const {
    return {used_.load(std::memory_order_relaxed), peak_.load(std::memory_order_relaxed), capacity(),
            allocations_.load(std::memory_order_relaxed), refusals_.load(std::memory_order_relaxed)};
  }

 private:
  void raise_peak(std::size_t used) {
    std::size_t peak = peak_.load(std::memory_order_relaxed);
    while (used > peak && !peak_.compare_exchange_weak(peak, used, std::memory_order_relaxed)) {
    }
  }

  std::atomic<std::size_t> used_{0};
  std::atomic<std::size_t> peak_{0};
  std::atomic<std::size_t> capacity_{0};
  std::atomic<std::uint64_t> allocations_{0};
  std::atomic<std::uint64_t> refusals_{0};
};

// Blocks that one card gave back, kept by size for its next request: asking the operating system anew would cost a page
// fault for every 4 KiB at first touch. They are in no ledger; with the card's used bytes they stay within its
// capacity.
class BlockCache {
 public:
  void* take(std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(nbytes);
    if (found == blocks_.end() || found->second.empty()) return nullptr;
    void* block = found->second.back();
    found->second.pop_back();
    held_nbytes_ -= nbytes;
    return block;
  }

  // True if the block is kept; else it is still the caller's.
  bool keep(void* block, std::size_t nbytes, std::size_t room_nbytes) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (nbytes > room_nbytes || held_nbytes_ > room_nbytes - nbytes) return false;
    try {
      blocks_[nbytes].push_back(block);
    } catch (const std::bad_alloc&) {
      return false;
    }
    held_nbytes_ += nbytes;
    return true;
  }

  void trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [nbytes, blocks] : blocks_) {
      for (void* block : blocks) std::free(block);
    }
    blocks_.clear();
    held_nbytes_ = 0;
  }

  std::size_t held_nbytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return held_nbytes_;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<std::size_t, std::vector<void*>> blocks_;
  std::size_t held_nbytes_ = 0;
};

// All slots exist always: a block outlives a change of the number of cards and still finds its ledger.
struct HostMachine {
  std::atomic<int> cards{0};
  std::array<CardLedger, kMaxCards> ledgers;
  std::array<BlockCache, kMaxCards> caches;
  std::array<std::array<std::atomic<bool>, kMaxCards>, kMaxCards> peers{};

  bool has(int card) const { return card >= 0 && card < cards.load(std::memory_order_relaxed); }
};

// Never destroyed: tensors may be freed after static destructors have run.
HostMachine& machine() {
  static auto* instance = new HostMachine;
  return *instance;
}

int init() { return kSuccess; }

int driver_version(int* version) {
  *version = static_cast<int>(kHostTableRevision);
  return kSuccess;
}

int device_count(int* count) {
  *count = machine().cards.load(std::memory_order_relaxed);
  return kSuccess;
}

int device_name(int card, char* text, std::size_t capacity) {
  if (!machine().has(card)) return kInvalidDevice;
  std::snprintf(text, capacity, "virtual card");
  return kSuccess;
}

int total_memory(int card, std::size_t* nbytes) {
  if (!machine().has(card)) return kInvalidDevice;
  *nbytes = machine().ledgers[card].capacity();
  return kSuccess;
}

int memory_info(int card, std::size_t* free_nbytes, std::size_t* total_nbytes) {
  if (!machine().has(card)) return kInvalidDevice;
  const Ledger now = machine().ledgers[card].read();
  *total_nbytes = now.capacity_nbytes;
  *free_nbytes = now.capacity_nbytes - std::min(now.used_nbytes, now.capacity_nbytes);
  return kSuccess;
}

int can_access_peer(int card, int peer, int* possible) {
  if (!machine().has(card) || !machine().has(peer)) return kInvalidDevice;
  *possible = machine().peers[card][peer].load(std::memory_order_relaxed) ? 1 : 0;
  return kSuccess;
}

const char* status_name(int status) {
  switch (status) {
    case kSuccess:
      return "SUCCESS";
    case kInvalidValue:
      return "INVALID_VALUE";
    case kOutOfMemory:
      return "OUT_OF_MEMORY";
    case kNotInitialized:
      return "NOT_INITIALIZED";
    case kNoDevice:
      return "NO_DEVICE";
    case kInvalidDevice:
      return "INVALID_DEVICE";
    case kOperatingSystem:
      return "OPERATING_SYSTEM";
    case kNotFound:
      return "NOT_FOUND";
    default:
      return "UNKNOWN";
  }
}

void* fresh_block(int card, std::size_t nbytes) {
  if (card != kHostMemory) {
    const Ledger now = machine().ledgers[card].read();
    BlockCache& cache = machine().caches[card];
    const std::size_t held = cache.held_nbytes();
    if (held != 0 && (now.used_nbytes > now.capacity_nbytes || held > now.capacity_nbytes - now.used_nbytes))
      cache.trim();
  }
  void* raw = nullptr;
  if (posix_memalign(&raw, kAlignment, nbytes + sizeof(BlockHeader)) == 0) return raw;
  if (card == kHostMemory) return nullptr;
  machine().caches[card].trim();
  return posix_memalign(&raw, kAlignment, nbytes + sizeof(BlockHeader)) == 0 ? raw : nullptr;
}

// Whether the card keeps a block for its next request.
bool kept(BlockHeader* header, int card, std::size_t charge) {
  if (charge < kCachedFrom) return false;
  const Ledger now = machine().ledgers[card].read();
  const std::size_t room = now.capacity_nbytes - std::min(now.used_nbytes, now.capacity_nbytes);
  return machine().caches[card].keep(header, charge, room);
}

int memory_allocate(int card, std::size_t nbytes, void** pointer) {
  *pointer = nullptr;
  if (card != kHostMemory && !machine().has(card)) return kInvalidDevice;
  if (nbytes == 0) return kSuccess;
  if (nbytes > std::numeric_limits<std::size_t>::max() - sizeof(BlockHeader) - kGranularity) return kOutOfMemory;
  const std::size_t charge = card == kHostMemory ? 0 : rounded(nbytes);
  if (charge != 0 && !machine().ledgers[card].charge(charge)) return kOutOfMemory;
  void* raw = charge >= kCachedFrom ? machine().caches[card].take(charge) : nullptr;
  if (raw == nullptr) raw = fresh_block(card, charge == 0 ? nbytes : charge);
  if (raw == nullptr) {
    if (charge != 0) machine().ledgers[card].undo_charge(charge);
    return kOperatingSystem;
  }
  *pointer = static_cast<char*>(raw) + sizeof(BlockHeader);
  new (raw) BlockHeader{kLiveBlock, charge, card, {1}};
  return kSuccess;
}

int memory_retain(void* pointer) {
  if (pointer == nullptr) return kSuccess;
  if (header_of(pointer)->mark != kLiveBlock) return kNotFound;
  header_of(pointer)->owners.fetch_add(1, std::memory_order_relaxed);
  return kSuccess;
}

int memory_free(void* pointer) {
  if (pointer == nullptr) return kSuccess;
  BlockHeader* header = header_of(pointer);
  if (header->mark != kLiveBlock) return kNotFound;
  if (header->owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return kSuccess;
  const int card = header->card;
  const std::size_t charge = header->charged_nbytes;
  header->mark = 0;
  if (card != kHostMemory) machine().ledgers[card].discharge(charge);
  if (card == kHostMemory || !kept(header, card, charge)) std::free(header);
  return kSuccess;
}

int memory_card(void* pointer, int* card) {
  if (pointer == nullptr || header_of(pointer)->mark != kLiveBlock) return kNotFound;
  *card = header_of(pointer)->card;
  return kSuccess;
}

int ledger(int card, Ledger* ledger) {
  if (card < 0 || card >= kMaxCards) return kInvalidDevice;
  *ledger = machine().ledgers[card].read();
  return kSuccess;
}

int reset_peak(int card) {
  if (card < 0 || card >= kMaxCards) return kInvalidDevice;
  machine().ledgers[card].reset_peak();
  return kSuccess;
}

int configure(int cards, const std::size_t* capacities) {
  if (cards < 1 || cards > kMaxCards) return kInvalidValue;
  for (int card = 0; card < kMaxCards; ++card) {
    machine().ledgers[card].set_capacity(card < cards ? capacities[card] : 0);
    machine().caches[card].trim();
    for (int peer = 0; peer < kMaxCards; ++peer) {
      machine().peers[card][peer].store(card != peer, std::memory_order_relaxed);
    }
  }
  machine().cards.store(cards, std::memory_order_relaxed);
  return kSuccess;
}

int set_capacity(int card, std::size_t nbytes) {
  if (!machine().has(card)) return kInvalidDevice;
  machine().ledgers[card].set_capacity(nbytes);
  machine().caches[card].trim();
  return kSuccess;
}

int set_peer(int card, int peer, int possible) {
  if (!machine().has(card) || !machine().has(peer) || card == peer) return kInvalidDevice;
  machine().peers[card][peer].store(possible != 0, std::memory_order_relaxed);
  return kSuccess;
}

constexpr HostTable kTable = {
    sizeof(HostTable),
    kHostTableRevision,
    {"HOST", init, driver_version, device_count, device_name, total_memory, memory_info, can_access_peer, status_name},
    memory_allocate,
    memory_retain,
    memory_free,
    memory_card,
    ledger,
    reset_peak,
    configure,
    set_capacity,
    set_peer,
};

}  // namespace

const HostTable* host_driver_table() { return &kTable; }

}  // namespace poolrt
