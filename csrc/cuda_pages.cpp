#include "cuda_pages.hpp"

#include <array>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <optional>
#include <unordered_map>

#include "cuda_context.hpp"
#include "cuda_library.hpp"

namespace poolrt::cuda_driver {
namespace {

constexpr std::size_t kWholePages = 0;  // offset into the pages of a mapping
constexpr unsigned long long kNoFlags = 0;
constexpr Address kAnywhere = 0;

// Where mapped memory is: libcuda cannot tell a host page's address from a card's, but treats them differently.
struct PlaceMap {
  struct Mapping {
    std::size_t nbytes;
    int place;
  };

  std::mutex mutex;
  std::unordered_map<Pages, int> places;
  std::map<Address, Mapping> mappings;

  std::optional<int> place_at(Address at) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto after = mappings.upper_bound(at);
    if (after == mappings.begin()) return std::nullopt;
    const auto& [begin, mapping] = *std::prev(after);
    if (at >= begin + mapping.nbytes) return std::nullopt;
    return mapping.place;
  }
};

PlaceMap& place_map() {
  static auto* instance = new PlaceMap;
  return *instance;
}

// The NUMA node of the host's pages: the one nearest to card 0.
int host_node() {
  static const int node = [] {
    int device = 0;
    int nearest = -1;
    if (cuda().device(&device, 0) == kSuccess) call(cuda().attribute, &nearest, kAttributeHostNumaNode, device);
    return nearest < 0 ? 0 : nearest;
  }();
  return node;
}

// False of a driver too old for the question: it may have host pages all the same.
bool lacks_host_pages() {
  int device = 0;
  int supported = 1;
  if (cuda().device(&device, 0) != kSuccess) return false;
  return call(cuda().attribute, &supported, kAttributeHostNumaPages, device) == kSuccess && supported == 0;
}

int locate(int place, Location* location) {
  if (place == kHostMemory) {
    if (lacks_host_pages()) return kNotSupported;
    *location = {kLocationHostNuma, host_node()};
    return kSuccess;
  }
  location->type = kLocationDevice;
  return cuda().device(&location->id, place);
}

int describe(int place, AllocationProperties* properties) {
  *properties = {};
  properties->type = kAllocationPinned;
  return locate(place, &properties->location);
}

template <typename Work>
int in_context_for(int place, Work work) {
  return place == kHostMemory ? in_context_if_any(work) : in_context_of(place, work);
}

// Lets the processor touch the host pages in an interval. libcuda refuses that for the pages of a card, so each host
// mapping is named alone; a driver that cannot do it leaves them to the cards.
int allow_processor(Address at, std::size_t nbytes) {
  PlaceMap& map = place_map();
  const std::lock_guard<std::mutex> lock(map.mutex);
  const AccessDescription processor = {{kLocationHostNuma, host_node()}, kAccessReadWrite};
  for (auto mapping = map.mappings.lower_bound(at); mapping != map.mappings.end() && mapping->first < at + nbytes;
       ++mapping) {
    const auto& [begin, what] = *mapping;
    if (what.place != kHostMemory) continue;
    const int status = call(cuda().set_access, begin, what.nbytes, &processor, std::size_t{1});
    if (status != kSuccess && status != kNotSupported) return status;
  }
  return kSuccess;
}

}  // namespace

int granularity(int place, std::size_t* nbytes) {
  AllocationProperties properties;
  if (const int status = describe(place, &properties)) return status;
  return call(cuda().granularity, nbytes, &properties, kGranularityRecommended);
}

int pages_create(int place, std::size_t nbytes, Pages* pages) {
  AllocationProperties properties;
  if (const int status = describe(place, &properties)) return status;
  const std::lock_guard<std::mutex> lock(place_map().mutex);
  Pages made = 0;
  const int status =
      in_context_for(place, [&] { return call(cuda().pages_create, &made, nbytes, &properties, kNoFlags); });
  if (status != kSuccess) return status;
  try {
    place_map().places[made] = place;
  } catch (const std::bad_alloc&) {
    cuda().pages_release(made);
    throw;
  }
  *pages = made;
  return kSuccess;
}

int pages_release(Pages pages) {
  const std::lock_guard<std::mutex> lock(place_map().mutex);
  const int status = in_context_if_any([&] { return call(cuda().pages_release, pages); });
  if (status == kSuccess) place_map().places.erase(pages);
  return status;
}

int range_reserve(std::size_t nbytes, std::size_t alignment, Address* range) {
  return in_context_if_any([&] { return call(cuda().range_reserve, range, nbytes, alignment, kAnywhere, kNoFlags); });
}

int range_free(Address range, std::size_t nbytes) {
  return in_context_if_any([&] { return call(cuda().range_free, range, nbytes); });
}

int map(Address at, std::size_t nbytes, Pages pages) {
  const std::lock_guard<std::mutex> lock(place_map().mutex);
  const auto place = place_map().places.find(pages);
  if (place == place_map().places.end()) return kInvalidValue;
  const auto [mapping, is_new] = place_map().mappings.try_emplace(at, PlaceMap::Mapping{nbytes, place->second});
  if (!is_new) return kInvalidValue;
  const int status = in_context_if_any([&] { return call(cuda().map, at, nbytes, kWholePages, pages, kNoFlags); });
  if (status != kSuccess) place_map().mappings.erase(mapping);
  return status;
}

int unmap(Address at, std::size_t nbytes) {
  const std::lock_guard<std::mutex> lock(place_map().mutex);
  const int status = in_context_if_any([&] { return call(cuda().unmap, at, nbytes); });
  if (status == kSuccess) place_map().mappings.erase(at);
  return status;
}

int set_access(Address at, std::size_t nbytes, const int* cards, int count) {
  if (count < 1 || count > kMaxCards) return kInvalidValue;
  std::array<AccessDescription, kMaxCards> descriptions{};
  for (int i = 0; i < count; ++i) {
    descriptions[i] = {{kLocationDevice, 0}, kAccessReadWrite};
    if (const int status = cuda().device(&descriptions[i].location.id, cards[i])) return status;
  }
  return in_context_if_any([&] {
    const int status = call(cuda().set_access, at, nbytes, descriptions.data(), static_cast<std::size_t>(count));
    return status != kSuccess ? status : allow_processor(at, nbytes);
  });
}

// cuMemcpy from card to card returns before the bytes are there, hence the wait.
int copy(Address target, Address source, std::size_t nbytes) {
  if (cuda().stream_synchronize == nullptr) return kNotSupported;
  const auto work = [&] {
    const int status = call(cuda().copy, target, source, nbytes);
    return status != kSuccess ? status : cuda().stream_synchronize(nullptr);
  };
  for (const Address at : {target, source}) {
    const std::optional<int> place = place_map().place_at(at);
    if (place && *place != kHostMemory) return in_context_of(*place, work);
  }
  return in_some_context(work);
}

}  // namespace poolrt::cuda_driver
