// Pages of the HOST driver: ranges made of several places, whose memory is whose, and who may touch it.
#include <dirent.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::kHostMemory;
using poolrt::kInvalidDevice;
using poolrt::kInvalidValue;
using poolrt::kOutOfMemory;
using poolrt::Pages;

unsigned char* bytes_at(Address at) { return reinterpret_cast<unsigned char*>(at); }

bool holds(Address at, std::size_t nbytes, unsigned char value) {
  return bytes_at(at)[0] == value && std::memcmp(bytes_at(at), bytes_at(at) + 1, nbytes - 1) == 0;
}

// Whether a child of this process survives a write there.
bool can_write(Address at) {
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    std::freopen("/dev/null", "w", stderr);
    *const_cast<volatile unsigned char*>(bytes_at(at)) = 1;
    _exit(0);
  }
  int status = 0;
  EXPECT(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::size_t descriptors() {
  DIR* folder = opendir("/proc/self/fd");
  std::size_t count = 0;
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

std::size_t mappings_of_pages() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("poolrt pages") != std::string::npos ? 1 : 0;
  return count;
}

//     range:   | card 0, 1 page | card 1, 2 pages | host, 1 page |      free      |
CASE(one_range_is_made_of_several_places) {
  configure({16 * kMiB, 16 * kMiB});
  const Address range = reserve(5 * kPage);
  const std::vector<Pages> pages = {create(0, kPage), create(1, 2 * kPage), create(kHostMemory, kPage)};
  EXPECT_OK(driver().map(range, kPage, pages[0]));
  EXPECT_OK(driver().map(range + kPage, 2 * kPage, pages[1]));
  EXPECT_OK(driver().map(range + 3 * kPage, kPage, pages[2]));
  EXPECT_OK(set_access(range, 4 * kPage, {0, 1}));
  EXPECT(ledger(0).used_nbytes == kPage && ledger(1).used_nbytes == 2 * kPage);
  EXPECT(ledger(kHostMemory).used_nbytes == kPage);
  EXPECT(holds(range, 4 * kPage, 0));
  std::memset(bytes_at(range), 7, 4 * kPage);
  EXPECT(holds(range, 4 * kPage, 7));
  const poolrt::PageState now = page_state();
  EXPECT(now.handle_count == 3 && now.mapping_count == 3);
  EXPECT(now.mapped_nbytes == 4 * kPage && now.reserved_nbytes == 5 * kPage);
  for (const Pages handle : pages) EXPECT_OK(driver().pages_release(handle));
  EXPECT_OK(driver().unmap(range, kPage));
  EXPECT_OK(driver().unmap(range + kPage, 2 * kPage));
  EXPECT_OK(driver().unmap(range + 3 * kPage, kPage));
  EXPECT_OK(driver().range_free(range, 5 * kPage));
  EXPECT(ledger(0).used_nbytes == 0 && ledger(1).used_nbytes == 0 && ledger(kHostMemory).used_nbytes == 0);
  EXPECT(ledger(1).peak_nbytes == 2 * kPage && ledger(1).allocation_count == 1);
  EXPECT(nothing_is_left());
}

CASE(released_pages_live_until_their_last_mapping_is_gone) {
  configure({16 * kMiB});
  const Address range = reserve(2 * kPage);
  const Pages pages = create(0, kPage);
  EXPECT_OK(driver().map(range, kPage, pages));
  EXPECT_OK(driver().map(range + kPage, kPage, pages));
  EXPECT_OK(set_access(range, 2 * kPage, {0}));
  EXPECT_OK(driver().pages_release(pages));
  EXPECT(driver().pages_release(pages) == kInvalidValue);
  std::memset(bytes_at(range), 3, kPage);
  EXPECT(holds(range + kPage, kPage, 3));  // the same pages, seen twice
  EXPECT(page_state().handle_count == 0 && ledger(0).used_nbytes == kPage);
  EXPECT_OK(driver().unmap(range, kPage));
  EXPECT(holds(range + kPage, kPage, 3) && ledger(0).used_nbytes == kPage);
  EXPECT(driver().map(range, kPage, pages) == kInvalidValue);
  EXPECT_OK(driver().unmap(range + kPage, kPage));
  EXPECT(ledger(0).used_nbytes == 0);
  EXPECT_OK(driver().range_free(range, 2 * kPage));
  EXPECT(nothing_is_left());
}

CASE(pages_keep_their_bytes_when_they_are_mapped_anew) {
  configure({16 * kMiB});
  const Pages pages = create(0, kPage);
  for (int round = 0; round < 3; ++round) {
    const Address range = reserve(kPage);
    EXPECT_OK(driver().map(range, kPage, pages));
    EXPECT_OK(set_access(range, kPage, {0}));
    EXPECT(holds(range, kPage, static_cast<unsigned char>(round)));
    std::memset(bytes_at(range), round + 1, kPage);
    EXPECT_OK(driver().unmap(range, kPage));
    EXPECT_OK(driver().range_free(range, kPage));
  }
  EXPECT_OK(driver().pages_release(pages));
  EXPECT(nothing_is_left());
}

CASE(new_pages_are_zero_though_others_were_written_and_released) {
  configure({16 * kMiB});
  const Pages lasting = create(0, kPage);  // so that the memory's file stays open
  const Address range = reserve(kPage);
  for (int round = 0; round < 3; ++round) {
    const Pages pages = create(0, kPage);
    EXPECT_OK(driver().map(range, kPage, pages));
    EXPECT_OK(set_access(range, kPage, {0}));
    EXPECT(holds(range, kPage, 0));
    std::memset(bytes_at(range), 9, kPage);
    EXPECT_OK(driver().unmap(range, kPage));
    EXPECT_OK(driver().pages_release(pages));
  }
  EXPECT_OK(driver().range_free(range, kPage));
  EXPECT_OK(driver().pages_release(lasting));
  EXPECT(nothing_is_left());
}

CASE(a_refused_call_changes_nothing) {
  configure({16 * kMiB, 16 * kMiB});
  const Address range = reserve(4 * kPage);
  const Pages pages = create(0, 2 * kPage);
  const Pages other = create(1, kPage);
  EXPECT_OK(driver().map(range, 2 * kPage, pages));
  const poolrt::PageState before = page_state();
  Pages made = 77;
  Address reserved = 77;
  EXPECT(driver().pages_create(0, 0, &made) == kInvalidValue);
  EXPECT(driver().pages_create(0, kPage + 4096, &made) == kInvalidValue);
  EXPECT(driver().pages_create(2, kPage, &made) == kInvalidDevice);
  EXPECT(driver().pages_create(-2, kPage, &made) == kInvalidDevice);
  EXPECT(driver().range_reserve(kPage + 1, 0, &reserved) == kInvalidValue);
  EXPECT(driver().range_reserve(kPage, 3 * kMiB, &reserved) == kInvalidValue);
  EXPECT(driver().range_reserve(SIZE_MAX / kPage * kPage, 0, &reserved) == kOutOfMemory);
  EXPECT(made == 77 && reserved == 77);
  EXPECT(driver().map(range + 2 * kPage, kPage, pages) == kInvalidValue);         // not whole
  EXPECT(driver().map(range + kPage, kPage, other) == kInvalidValue);             // over a mapping
  EXPECT(driver().map(range + 2 * kPage + 4096, kPage, other) == kInvalidValue);  // misaligned
  EXPECT(driver().map(range + 4 * kPage, kPage, other) == kInvalidValue);         // outside
  EXPECT(driver().map(range + 3 * kPage, 2 * kPage, pages) == kInvalidValue);     // half outside
  EXPECT(driver().map(range + 2 * kPage, kPage, Pages{4711}) == kInvalidValue);   // no such pages
  EXPECT(driver().unmap(range, kPage) == kInvalidValue);                          // a part
  EXPECT(driver().unmap(range + kPage, kPage) == kInvalidValue);                  // a part
  EXPECT(driver().unmap(range + 2 * kPage, kPage) == kInvalidValue);              // nothing there
  EXPECT(driver().range_free(range, 4 * kPage) == kInvalidValue);                 // something mapped
  EXPECT(driver().range_free(range, 2 * kPage) == kInvalidValue);                 // a part
  EXPECT(driver().range_free(range + kPage, kPage) == kInvalidValue);             // a part
  EXPECT(driver().pages_release(Pages{4711}) == kInvalidValue);
  EXPECT(set_access(range, kPage, {0}) == kInvalidValue);      // part of a mapping
  EXPECT(set_access(range, 3 * kPage, {0}) == kInvalidValue);  // a gap
  EXPECT(set_access(range, 2 * kPage, {}) == kInvalidValue);
  EXPECT(set_access(range, 2 * kPage, {0, 2}) == kInvalidDevice);
  EXPECT(set_access(range, 2 * kPage, {kHostMemory}) == kInvalidDevice);
  const poolrt::PageState after = page_state();
  EXPECT(std::memcmp(&before, &after, sizeof(before)) == 0);
  EXPECT(!may_touch(range, 0) && !can_write(range));
  EXPECT(ledger(0).used_nbytes == 2 * kPage && ledger(1).used_nbytes == kPage);
  EXPECT_OK(driver().unmap(range, 2 * kPage));
  EXPECT_OK(driver().range_free(range, 4 * kPage));
  EXPECT(driver().range_free(range, 4 * kPage) == kInvalidValue);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT_OK(driver().pages_release(other));
  EXPECT(nothing_is_left());
}

CASE(nobody_touches_a_mapping_before_access_was_set_nor_after_it_is_gone) {
  configure({16 * kMiB, 16 * kMiB});
  const Address range = reserve(2 * kPage);
  const Pages pages = create(0, kPage);
  EXPECT(!can_write(range));
  EXPECT_OK(driver().map(range, kPage, pages));
  EXPECT(!may_touch(range, 0) && !can_write(range));
  EXPECT_OK(set_access(range, kPage, {0}));
  EXPECT(may_touch(range + kPage - 1, 0) && !may_touch(range, 1) && can_write(range));
  EXPECT(!may_touch(range, kHostMemory));  // the processor reads a card's memory by a copy
  EXPECT_OK(set_access(range, kPage, {1}));
  EXPECT(may_touch(range, 0) && may_touch(range, 1));
  EXPECT_OK(driver().unmap(range, kPage));
  EXPECT(!may_touch(range, 0) && !can_write(range));
  EXPECT_OK(driver().map(range, kPage, pages));
  EXPECT(!may_touch(range, 0) && !can_write(range));
  EXPECT_OK(driver().unmap(range, kPage));
  EXPECT_OK(driver().pages_release(pages));
  EXPECT_OK(driver().range_free(range, 2 * kPage));
}

CASE(a_card_gets_access_only_to_places_it_reaches) {
  configure({16 * kMiB, 16 * kMiB});
  EXPECT_OK(host().set_peer(1, 0, 0));
  const Address range = reserve(3 * kPage);
  const std::vector<int> places = {0, kHostMemory, 1};
  for (int i = 0; i < 3; ++i) {
    const Pages pages = create(places[i], kPage);
    EXPECT_OK(driver().map(range + i * kPage, kPage, pages));
    EXPECT_OK(driver().pages_release(pages));
  }
  EXPECT(set_access(range, 3 * kPage, {0, 1}) == kInvalidDevice);
  EXPECT(!may_touch(range, 0) && !may_touch(range + 2 * kPage, 1));
  EXPECT_OK(set_access(range, 3 * kPage, {0}));  // card 0 reaches card 1, though not the other way round
  EXPECT_OK(set_access(range + kPage, 2 * kPage, {1}));
  EXPECT(may_touch(range + 2 * kPage, 0) && !may_touch(range, 1) && may_touch(range + kPage, 1));
  EXPECT(may_touch(range + kPage, kHostMemory) && !may_touch(range + 2 * kPage, kHostMemory));
  for (int i = 0; i < 3; ++i) EXPECT_OK(driver().unmap(range + i * kPage, kPage));
  EXPECT_OK(driver().range_free(range, 3 * kPage));
  EXPECT(nothing_is_left());
}

CASE(a_range_begins_where_it_was_asked_to) {
  configure({kMiB});
  for (std::size_t alignment = 4096; alignment <= 1024 * kMiB; alignment *= 8) {
    const Address range = reserve(kPage, alignment);
    EXPECT(range % alignment == 0 && range % kPage == 0);
    EXPECT_OK(driver().range_free(range, kPage));
  }
  EXPECT(nothing_is_left());
}

CASE(pages_and_blocks_share_a_cards_ledger) {
  configure({4 * kMiB});
  void* block = allocate(0, kMiB);
  const Pages pages = create(0, kPage);
  Pages refused = 0;
  EXPECT(driver().pages_create(0, kPage, &refused) == kOutOfMemory && refused == 0);
  EXPECT(ledger(0).used_nbytes == 3 * kMiB && ledger(0).refusal_count == 1);
  EXPECT_OK(host().memory_free(block));
  const Pages more = create(0, kPage);  // the cached block gives way
  void* none = nullptr;
  EXPECT(host().memory_allocate(0, 1, &none) == kOutOfMemory);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT_OK(driver().pages_release(more));
  EXPECT(ledger(0).used_nbytes == 0);
}

CASE(the_host_has_a_ledger_for_pages_and_a_limit_if_wished) {
  configure({kMiB});
  void* block = allocate(kHostMemory, kMiB);
  EXPECT(ledger(kHostMemory).used_nbytes == 0 && ledger(kHostMemory).capacity_nbytes == SIZE_MAX);
  EXPECT_OK(host().set_capacity(kHostMemory, kPage));
  const Pages pages = create(kHostMemory, kPage);
  Pages refused = 0;
  EXPECT(driver().pages_create(kHostMemory, kPage, &refused) == kOutOfMemory);
  EXPECT(ledger(kHostMemory).used_nbytes == kPage && ledger(kHostMemory).refusal_count == 1);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT_OK(host().memory_free(block));
  EXPECT(ledger(kHostMemory).used_nbytes == 0 && ledger(kHostMemory).peak_nbytes == kPage);
  EXPECT_OK(host().reset_peak(kHostMemory));
  EXPECT(ledger(kHostMemory).peak_nbytes == 0);
  configure({kMiB});
  EXPECT(ledger(kHostMemory).capacity_nbytes == SIZE_MAX);
}

CASE(pages_outlive_a_change_of_the_number_of_cards) {
  configure({16 * kMiB, 16 * kMiB});
  const Pages pages = create(1, kPage);
  configure({16 * kMiB});
  std::size_t nbytes = 0;
  EXPECT(driver().granularity(1, &nbytes) == kInvalidDevice);
  EXPECT(ledger(1).used_nbytes == kPage);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT(ledger(1).used_nbytes == 0);
}

CASE(a_copy_stays_in_one_place_at_each_end) {
  configure({16 * kMiB, 16 * kMiB});
  const Address range = reserve(3 * kPage);
  for (int card = 0; card < 2; ++card) {
    const Pages pages = create(card, kPage);
    EXPECT_OK(driver().map(range + card * kPage, kPage, pages));
    EXPECT_OK(driver().pages_release(pages));
  }
  std::vector<unsigned char> ordinary(2 * kPage, 5);
  const Address outside = reinterpret_cast<Address>(ordinary.data());
  EXPECT(driver().copy(range, outside, kPage) == kInvalidValue);  // no access yet
  EXPECT_OK(set_access(range, 2 * kPage, {0, 1}));
  EXPECT_OK(driver().copy(range, outside, kPage));
  EXPECT_OK(driver().copy(range + kPage + 1, range + 2, kPage - 3));
  EXPECT(bytes_at(range)[kPage] == 0 && holds(range + kPage + 1, kPage - 3, 5) && bytes_at(range)[2 * kPage - 1] == 0);
  EXPECT(driver().copy(range, outside, 2 * kPage) == kInvalidValue);          // two cards
  EXPECT(driver().copy(outside, range + kPage - 1, 2) == kInvalidValue);      // two cards
  EXPECT(driver().copy(outside, range + 2 * kPage - 1, 2) == kInvalidValue);  // into the gap
  EXPECT(driver().copy(range + 2 * kPage, outside, 1) == kInvalidValue);      // nothing mapped
  EXPECT_OK(driver().copy(range + 2 * kPage, outside, 0));
  for (int card = 0; card < 2; ++card) EXPECT_OK(driver().unmap(range + card * kPage, kPage));
  EXPECT_OK(driver().range_free(range, 3 * kPage));
}

CASE(a_thousand_pages_take_one_descriptor_and_leave_none) {
  configure({4096 * kMiB, 4096 * kMiB});
  const std::size_t descriptors_before = descriptors();
  const std::size_t mappings_before = mappings_of_pages();
  const Address range = reserve(1200 * kPage);
  std::vector<Pages> pages;
  for (int i = 0; i < 1200; ++i) {
    pages.push_back(create(i % 2, kPage));
    EXPECT_OK(driver().map(range + i * kPage, kPage, pages.back()));
  }
  EXPECT(descriptors() == descriptors_before + 2);
  EXPECT(mappings_of_pages() > mappings_before);
  for (int i = 0; i < 1200; ++i) {
    EXPECT_OK(driver().unmap(range + i * kPage, kPage));
    EXPECT_OK(driver().pages_release(pages[i]));
  }
  EXPECT_OK(driver().range_free(range, 1200 * kPage));
  EXPECT(descriptors() == descriptors_before && mappings_of_pages() == mappings_before);
  EXPECT(nothing_is_left());
}

// The system, not the ledger, refuses: no descriptor is left for the memory.
CASE(a_machine_without_descriptors_refuses_and_stays_as_it_was) {
  configure({16 * kMiB});
  rlimit before{};
  EXPECT(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none = {0, before.rlim_max};
  EXPECT(setrlimit(RLIMIT_NOFILE, &none) == 0);
  Pages pages = 0;
  EXPECT(driver().pages_create(0, kPage, &pages) == poolrt::kOperatingSystem && pages == 0);
  EXPECT(setrlimit(RLIMIT_NOFILE, &before) == 0);
  EXPECT(ledger(0).used_nbytes == 0 && ledger(0).allocation_count == 0 && nothing_is_left());
  EXPECT_OK(driver().pages_release(create(0, kPage)));
}

struct OwnPages {
  Address range;
  Pages pages;
  int place;
};

// Four threads map, mark, check and unmap pages of their own, of every place. A card has room for two pages, less than
// one thread alone asks for at times: there are refusals also where the threads happen to run one after another.
CASE(threads_share_the_places) {
  configure({4 * kMiB, 4 * kMiB});
  std::atomic<int> refusals{0};
  const auto work = [&](int number) {
    std::mt19937 random(number);
    std::vector<OwnPages> own;
    for (int i = 0; i < 300; ++i) {
      if (own.size() == 3 || (!own.empty() && random() % 2 == 0)) {
        const OwnPages last = own.back();
        own.pop_back();
        EXPECT(bytes_at(last.range)[0] == number && bytes_at(last.range)[kPage - 1] == number);
        EXPECT_OK(driver().unmap(last.range, kPage));
        EXPECT_OK(driver().pages_release(last.pages));
        EXPECT_OK(driver().range_free(last.range, kPage));
        continue;
      }
      const int place = static_cast<int>(random() % 3) - 1;
      Pages pages = 0;
      const int status = driver().pages_create(place, kPage, &pages);
      if (status != poolrt::kSuccess) {
        EXPECT(status == kOutOfMemory && place != kHostMemory);
        ++refusals;
        continue;
      }
      const Address range = reserve(kPage);
      EXPECT_OK(driver().map(range, kPage, pages));
      EXPECT_OK(set_access(range, kPage, {0, 1}));
      bytes_at(range)[0] = bytes_at(range)[kPage - 1] = static_cast<unsigned char>(number);
      own.push_back({range, pages, place});
    }
    for (const OwnPages& last : own) {
      EXPECT_OK(driver().unmap(last.range, kPage));
      EXPECT_OK(driver().pages_release(last.pages));
      EXPECT_OK(driver().range_free(last.range, kPage));
    }
  };
  std::vector<std::thread> threads;
  for (int number = 1; number <= 4; ++number) threads.emplace_back(work, number);
  for (std::thread& thread : threads) thread.join();
  EXPECT(refusals > 0);
  EXPECT(ledger(0).used_nbytes == 0 && ledger(1).used_nbytes == 0 && ledger(kHostMemory).used_nbytes == 0);
  EXPECT(ledger(0).peak_nbytes <= 4 * kMiB && nothing_is_left());
}

}  // namespace
