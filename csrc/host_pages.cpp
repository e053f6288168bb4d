//     handle --> pages of card 0 (charged to its ledger) <-- mapping in a range: who may touch it
//
// Pages go when their handle was released and their last mapping is gone; only then is the charge returned.
#include "host_pages.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "host_address_map.hpp"
#include "host_address_range.hpp"
#include "host_links.hpp"
#include "host_machine.hpp"
#include "host_page_file.hpp"

namespace poolrt::host_driver {
namespace {

constexpr std::size_t kPageGranularity = 2 << 20;

bool in_whole_pages(std::uint64_t value) { return value % kPageGranularity == 0; }

bool is_power_of_two(std::size_t value) { return value != 0 && (value & (value - 1)) == 0; }

// One bit for every place that may touch a mapping; the processor has the first.
std::uint32_t bit_of(int place) { return std::uint32_t{1} << (place + 1); }

struct PlacePages {
  int place;
  std::size_t nbytes;
  off_t offset;
  std::uint64_t mapping_count = 0;
  bool released = false;
};

class HostPages {
 public:
  int create(int place, std::size_t nbytes, Pages* pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Pages made = last_handle_ + 1;
    PlacePages& record = pages_.try_emplace(made, PlacePages{place, nbytes, 0}).first->second;
    const int status = charge_and_take(record);
    if (status != kSuccess) {
      pages_.erase(made);
      return status;
    }
    *pages = last_handle_ = made;
    return kSuccess;
  }

  int release(Pages pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pages_.find(pages);
    if (found == pages_.end() || found->second.released) return kInvalidValue;
    found->second.released = true;
    drop_if_unused(found);
    return kSuccess;
  }

  int reserve(std::size_t nbytes, std::size_t alignment, Address* range) {
    std::optional<AddressRange> made = AddressRange::reserve(nbytes, alignment);
    if (!made) return kOutOfMemory;
    const std::lock_guard<std::mutex> lock(mutex_);
    const Address begin = made->begin();
    map_.ranges.try_emplace(begin, std::move(*made));
    *range = begin;
    return kSuccess;
  }

  int free(Address range, std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = map_.ranges.find(range);
    if (found == map_.ranges.end() || found->second.nbytes() != nbytes) return kInvalidValue;
    if (map_.something_mapped(range, nbytes)) return kInvalidValue;
    map_.ranges.erase(found);
    return kSuccess;
  }

  int map(Address at, std::size_t nbytes, Pages pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pages_.find(pages);
    if (found == pages_.end() || found->second.released || found->second.nbytes != nbytes) return kInvalidValue;
    if (!map_.in_one_range(at, nbytes) || map_.something_mapped(at, nbytes)) return kInvalidValue;
    PlacePages& record = found->second;
    map_.mappings.try_emplace(at, Mapping{nbytes, pages, record.place});
    if (!AddressRange::place_file(at, nbytes, file(record.place).descriptor(), record.offset)) {
      map_.mappings.erase(at);
      return kOperatingSystem;
    }
    ++record.mapping_count;
    return kSuccess;
  }

  int unmap(Address at, std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = map_.mappings.find(at);
    if (found == map_.mappings.end() || found->second.nbytes != nbytes) return kInvalidValue;
    if (!AddressRange::place_nothing(at, nbytes)) return kOperatingSystem;
    const auto record = pages_.find(found->second.pages);
    map_.mappings.erase(found);
    --record->second.mapping_count;
    drop_if_unused(record);
    return kSuccess;
  }

  int set_access(Address at, std::size_t nbytes, const int* cards, int count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!map_.in_one_range(at, nbytes) || !map_.made_of_whole_mappings(at, nbytes)) return kInvalidValue;
    const auto first = map_.mappings.find(at);
    const auto last = map_.mappings.lower_bound(at + nbytes);
    for (auto mapping = first; mapping != last; ++mapping) {
      for (int i = 0; i < count; ++i) {
        if (!machine().reaches(cards[i], mapping->second.place)) return kInvalidDevice;
      }
    }
    if (!AddressRange::allow_touch(at, nbytes)) return kOperatingSystem;
    for (auto mapping = first; mapping != last; ++mapping) {
      for (int i = 0; i < count; ++i) mapping->second.allowed |= bit_of(cards[i]);
      if (mapping->second.place == kHostMemory) mapping->second.allowed |= bit_of(kHostMemory);
    }
    return kSuccess;
  }

  bool may_touch(Address at, int place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto mapping = map_.holding(at);
    return mapping != map_.mappings.end() && (mapping->second.allowed & bit_of(place)) != 0;
  }

  // Memory outside of every range is somebody's ordinary memory, in a place that only he knows.
  bool may_copy(Address at, std::size_t nbytes, std::optional<int>* place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (map_.outside_of_ranges(at, nbytes)) return true;
    const auto first = map_.holding(at);
    for (Address next = at; next < at + nbytes;) {
      const auto mapping = map_.holding(next);
      if (mapping == map_.mappings.end() || mapping->second.allowed == 0) return false;
      if (mapping->second.place != first->second.place) return false;
      next = mapping->first + mapping->second.nbytes;
    }
    *place = first->second.place;
    return true;
  }

  void count(PageState* state) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [handle, record] : pages_) state->handle_count += record.released ? 0 : 1;
    for (const auto& [at, mapping] : map_.mappings) state->mapped_nbytes += mapping.nbytes;
    for (const auto& [begin, range] : map_.ranges) state->reserved_nbytes += range.nbytes();
    state->mapping_count = map_.mappings.size();
  }

 private:
  PageFile& file(int place) { return files_[place + 1]; }

  int charge_and_take(PlacePages& record) {
    PlaceLedger& ledger = machine().ledger(record.place);
    if (!ledger.charge(record.nbytes)) return kOutOfMemory;
    if (record.place != kHostMemory) machine().trim_if_short(record.place);
    const int status = file(record.place).take(record.nbytes, &record.offset);
    if (status != kSuccess) ledger.undo_charge(record.nbytes);
    return status;
  }

  void drop_if_unused(std::unordered_map<Pages, PlacePages>::iterator found) {
    const PlacePages& record = found->second;
    if (!record.released || record.mapping_count != 0) return;
    file(record.place).give_back(record.offset, record.nbytes);
    machine().ledger(record.place).discharge(record.nbytes);
    pages_.erase(found);
  }

  std::mutex mutex_;
  Pages last_handle_ = 0;
  std::unordered_map<Pages, PlacePages> pages_;
  AddressMap map_;
  std::array<PageFile, kMaxCards + 1> files_;
};

// Never destroyed: pages may be given back after static destructors have run.
HostPages& all_pages() {
  static auto* instance = new HostPages;
  return *instance;
}

bool is_size(std::size_t nbytes) { return nbytes != 0 && in_whole_pages(nbytes); }

}  // namespace

int granularity(int place, std::size_t* nbytes) {
  if (!machine().is_place(place)) return kInvalidDevice;
  *nbytes = kPageGranularity;
  return kSuccess;
}

int pages_create(int place, std::size_t nbytes, Pages* pages) {
  if (!machine().is_place(place)) return kInvalidDevice;
  return is_size(nbytes) ? all_pages().create(place, nbytes, pages) : kInvalidValue;
}

int pages_release(Pages pages) { return all_pages().release(pages); }

int range_reserve(std::size_t nbytes, std::size_t alignment, Address* range) {
  if (!is_size(nbytes) || (alignment != 0 && !is_power_of_two(alignment))) return kInvalidValue;
  return all_pages().reserve(nbytes, std::max(alignment, kPageGranularity), range);
}

int range_free(Address range, std::size_t nbytes) { return all_pages().free(range, nbytes); }

int map(Address at, std::size_t nbytes, Pages pages) {
  return in_whole_pages(at) && is_size(nbytes) ? all_pages().map(at, nbytes, pages) : kInvalidValue;
}

int unmap(Address at, std::size_t nbytes) { return all_pages().unmap(at, nbytes); }

int set_access(Address at, std::size_t nbytes, const int* cards, int count) {
  if (!in_whole_pages(at) || !is_size(nbytes) || count < 1) return kInvalidValue;
  for (int i = 0; i < count; ++i) {
    if (!machine().has(cards[i])) return kInvalidDevice;
  }
  return all_pages().set_access(at, nbytes, cards, count);
}

int copy(Address target, Address source, std::size_t nbytes) {
  if (nbytes == 0) return kSuccess;
  std::optional<int> from;
  std::optional<int> to;
  if (!all_pages().may_copy(target, nbytes, &to) || !all_pages().may_copy(source, nbytes, &from)) return kInvalidValue;
  LinkPassage passage{0, kNoByte};
  const int status = from && to ? link_begin(*from, *to, nbytes, &passage) : kSuccess;
  if (status != kSuccess) return status;
  auto* bytes = reinterpret_cast<unsigned char*>(target);
  std::memmove(bytes, reinterpret_cast<const void*>(source), nbytes);
  if (passage.wrong_byte != kNoByte) bytes[passage.wrong_byte] ^= 0xff;
  return link_end(&passage);
}

int access(Address at, int card, int* allowed) {
  if (!machine().is_place(card)) return kInvalidDevice;
  *allowed = all_pages().may_touch(at, card) ? 1 : 0;
  return kSuccess;
}

void count_pages(PageState* state) { all_pages().count(state); }

}  // namespace poolrt::host_driver
