//     handle --> pages of card 0 (charged to its ledger) <-- mapping in a range: who may touch it
//
// Pages go when their handle was released and their last mapping is gone; only then is the charge returned.
#include "host_pages.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "host_address_range.hpp"
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

struct Mapping {
  std::size_t nbytes;
  Pages pages;
  std::uint32_t allowed = 0;
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
    ranges_.try_emplace(begin, std::move(*made));
    *range = begin;
    return kSuccess;
  }

  int free(Address range, std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = ranges_.find(range);
    if (found == ranges_.end() || found->second.nbytes() != nbytes) return kInvalidValue;
    if (something_mapped(range, nbytes)) return kInvalidValue;
    ranges_.erase(found);
    return kSuccess;
  }

  int map(Address at, std::size_t nbytes, Pages pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = pages_.find(pages);
    if (found == pages_.end() || found->second.released || found->second.nbytes != nbytes) return kInvalidValue;
    if (!in_one_range(at, nbytes) || something_mapped(at, nbytes)) return kInvalidValue;
    PlacePages& record = found->second;
    mappings_.try_emplace(at, Mapping{nbytes, pages});
    if (!AddressRange::place_file(at, nbytes, file(record.place).descriptor(), record.offset)) {
      mappings_.erase(at);
      return kOperatingSystem;
    }
    ++record.mapping_count;
    return kSuccess;
  }

  int unmap(Address at, std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = mappings_.find(at);
    if (found == mappings_.end() || found->second.nbytes != nbytes) return kInvalidValue;
    if (!AddressRange::place_nothing(at, nbytes)) return kOperatingSystem;
    const auto record = pages_.find(found->second.pages);
    mappings_.erase(found);
    --record->second.mapping_count;
    drop_if_unused(record);
    return kSuccess;
  }

  int set_access(Address at, std::size_t nbytes, const int* cards, int count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!in_one_range(at, nbytes) || !made_of_whole_mappings(at, nbytes)) return kInvalidValue;
    const auto first = mappings_.find(at);
    const auto last = mappings_.lower_bound(at + nbytes);
    for (auto mapping = first; mapping != last; ++mapping) {
      for (int i = 0; i < count; ++i) {
        if (!machine().reaches(cards[i], place_of(mapping->second))) return kInvalidDevice;
      }
    }
    if (!AddressRange::allow_touch(at, nbytes)) return kOperatingSystem;
    for (auto mapping = first; mapping != last; ++mapping) {
      for (int i = 0; i < count; ++i) mapping->second.allowed |= bit_of(cards[i]);
      if (place_of(mapping->second) == kHostMemory) mapping->second.allowed |= bit_of(kHostMemory);
    }
    return kSuccess;
  }

  bool may_touch(Address at, int place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Mapping* mapping = mapping_at(at);
    return mapping != nullptr && (mapping->allowed & bit_of(place)) != 0;
  }

  // Memory outside of every range is somebody's ordinary memory.
  bool may_copy(Address at, std::size_t nbytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (outside_of_ranges(at, nbytes)) return true;
    const Mapping* first = mapping_at(at);
    if (first == nullptr) return false;
    const int place = place_of(*first);
    for (Address next = at; next < at + nbytes;) {
      const auto mapping = std::prev(mappings_.upper_bound(next));
      const Address end = mapping->first + mapping->second.nbytes;
      if (end <= next || mapping->second.allowed == 0 || place_of(mapping->second) != place) return false;
      next = end;
    }
    return true;
  }

  void count(PageState* state) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [handle, record] : pages_) state->handle_count += record.released ? 0 : 1;
    for (const auto& [at, mapping] : mappings_) state->mapped_nbytes += mapping.nbytes;
    for (const auto& [begin, range] : ranges_) state->reserved_nbytes += range.nbytes();
    state->mapping_count = mappings_.size();
  }

 private:
  PageFile& file(int place) { return files_[place + 1]; }
  int place_of(const Mapping& mapping) const { return pages_.at(mapping.pages).place; }

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

  bool in_one_range(Address at, std::size_t nbytes) const {
    const auto after = ranges_.upper_bound(at);
    if (after == ranges_.begin()) return false;
    const AddressRange& range = std::prev(after)->second;
    return at < range.end() && nbytes <= range.end() - at;
  }

  bool outside_of_ranges(Address at, std::size_t nbytes) const {
    const auto next = ranges_.lower_bound(at + nbytes);
    return next == ranges_.begin() || std::prev(next)->second.end() <= at;
  }

  bool something_mapped(Address at, std::size_t nbytes) const {
    const auto next = mappings_.lower_bound(at + nbytes);
    if (next == mappings_.begin()) return false;
    const auto& [begin, mapping] = *std::prev(next);
    return begin + mapping.nbytes > at;
  }

  bool made_of_whole_mappings(Address at, std::size_t nbytes) const {
    Address next = at;
    while (next < at + nbytes) {
      const auto mapping = mappings_.find(next);
      if (mapping == mappings_.end()) return false;
      next += mapping->second.nbytes;
    }
    return next == at + nbytes;
  }

  const Mapping* mapping_at(Address at) const {
    const auto after = mappings_.upper_bound(at);
    if (after == mappings_.begin()) return nullptr;
    const auto& [begin, mapping] = *std::prev(after);
    return at < begin + mapping.nbytes ? &mapping : nullptr;
  }

  std::mutex mutex_;
  Pages last_handle_ = 0;
  std::unordered_map<Pages, PlacePages> pages_;
  std::map<Address, Mapping> mappings_;
  std::map<Address, AddressRange> ranges_;
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
  if (!all_pages().may_copy(target, nbytes) || !all_pages().may_copy(source, nbytes)) return kInvalidValue;
  std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), nbytes);
  return kSuccess;
}

int access(Address at, int card, int* allowed) {
  if (!machine().is_place(card)) return kInvalidDevice;
  *allowed = all_pages().may_touch(at, card) ? 1 : 0;
  return kSuccess;
}

void count_pages(PageState* state) { all_pages().count(state); }

}  // namespace poolrt::host_driver
