#include "pool_registry.hpp"

#include <map>
#include <mutex>
#include <shared_mutex>

namespace poolrt {
namespace {

struct Range {
  Address end;
  Pool* pool;
};

struct Registry {
  std::shared_mutex mutex;
  std::map<Address, Range> ranges;
};

// Never destroyed: tensors may be freed after static destructors have run.
Registry& registry() {
  static auto* instance = new Registry;
  return *instance;
}

}  // namespace

void register_range(Address begin, std::size_t nbytes, Pool* pool) {
  const std::unique_lock<std::shared_mutex> lock(registry().mutex);
  registry().ranges[begin] = {begin + nbytes, pool};
}

void forget_range(Address begin) {
  const std::unique_lock<std::shared_mutex> lock(registry().mutex);
  registry().ranges.erase(begin);
}

Pool* owner_of(Address address) {
  const std::shared_lock<std::shared_mutex> lock(registry().mutex);
  auto after = registry().ranges.upper_bound(address);
  if (after == registry().ranges.begin()) return nullptr;
  --after;
  return address < after->second.end ? after->second.pool : nullptr;
}

std::atomic<std::uint32_t>& pool_activity() {
  static auto* count = new std::atomic<std::uint32_t>(0);
  return *count;
}

}  // namespace poolrt
