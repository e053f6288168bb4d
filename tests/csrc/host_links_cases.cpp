// Links of the HOST driver: models, faults and counters.
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

using poolrt::kHostMemory;
using poolrt::kInvalidDevice;
using poolrt::kInvalidValue;
using poolrt::kLinkDies;
using poolrt::kLinkFailed;
using poolrt::kLinkLies;
using poolrt::kMiddleByte;
using poolrt::kNoByte;
using poolrt::kNoLimit;
using poolrt::LinkFault;
using poolrt::LinkModel;
using poolrt::LinkPassage;
using poolrt::LinkState;

LinkState state(int source, int target) {
  LinkState now{};
  EXPECT_OK(host().link_state(source, target, &now));
  return now;
}

LinkPassage begin(int source, int target, std::size_t nbytes) {
  LinkPassage passage{};
  EXPECT_OK(host().link_begin(source, target, nbytes, &passage));
  return passage;
}

bool fails(int source, int target, std::size_t nbytes) {
  LinkPassage passage{};
  const int status = host().link_begin(source, target, nbytes, &passage);
  EXPECT(status == poolrt::kSuccess || status == kLinkFailed);
  return status == kLinkFailed;
}

void set_fault(int source, int target, const LinkFault& fault) {
  EXPECT_OK(host().link_set_fault(source, target, &fault));
}

CASE(copies_are_counted_in_each_direction) {
  configure({kMiB, kMiB});
  begin(0, 1, 10);
  begin(0, 1, 5);
  begin(kHostMemory, 1, 7);
  begin(1, 1, 100);
  begin(kHostMemory, kHostMemory, 100);
  EXPECT(state(0, 1).copies == 2 && state(0, 1).nbytes == 15 && state(0, 1).up == 1);
  EXPECT(state(kHostMemory, 1).copies == 1 && state(kHostMemory, 1).nbytes == 7);
  EXPECT(state(1, 0).copies == 0 && state(1, kHostMemory).copies == 0);
  configure({kMiB, kMiB});
  EXPECT(state(0, 1).copies == 0 && state(0, 1).nbytes == 0);
}

CASE(a_link_without_a_model_takes_no_time) {
  configure({kMiB, kMiB});
  const LinkPassage passage = begin(0, 1, kMiB);
  EXPECT(passage.arrival_ns == 0 && passage.wrong_byte == kNoByte);
  EXPECT_OK(host().link_end(&passage));
}

//     0 -> 1    | latency | a ... | latency | b ... |         1 MiB at 1 GiB/s: 0.98 ms, and 1 ms of latency
//     1 -> 0    | c ... |
CASE(copies_on_one_link_come_one_after_the_other) {
  configure({kMiB, kMiB});
  set_model(0, 1, 1024.0 * kMiB, 0.001);
  set_model(1, 0, 1024.0 * kMiB);
  const auto before = std::chrono::steady_clock::now();
  const LinkPassage a = begin(0, 1, kMiB);
  const LinkPassage b = begin(0, 1, kMiB);
  const LinkPassage c = begin(1, 0, kMiB);
  const std::int64_t each_ns = 1000000 + 976562;
  EXPECT(std::abs(b.arrival_ns - a.arrival_ns - each_ns) <= 2);
  EXPECT(c.arrival_ns < b.arrival_ns);
  EXPECT_OK(host().link_end(&b));
  EXPECT(std::chrono::steady_clock::now() - before >= std::chrono::nanoseconds(2 * each_ns - 2));
}

CASE(a_link_that_lies_names_the_wrong_byte) {
  configure({kMiB, kMiB});
  set_fault(0, 1, {kLinkLies, kMiddleByte, 0, kNoLimit, kNoLimit});
  EXPECT(begin(0, 1, 1000).wrong_byte == 500);
  EXPECT(begin(1, 0, 1000).wrong_byte == kNoByte);
  set_fault(0, 1, {kLinkLies, 3, 100, kNoLimit, kNoLimit});
  EXPECT(begin(0, 1, 1000).wrong_byte == 3);
  EXPECT(begin(0, 1, 99).wrong_byte == kNoByte);
  set_fault(0, 1, {kLinkLies, 3, 0, kNoLimit, kNoLimit});
  EXPECT(begin(0, 1, 3).wrong_byte == kNoByte);
  EXPECT(state(0, 1).up == 1);
  set_fault(0, 1, {});
  EXPECT(begin(0, 1, 1000).wrong_byte == kNoByte);
}

CASE(a_link_dies_after_so_many_copies) {
  configure({kMiB, kMiB});
  set_fault(0, 1, {kLinkDies, 0, 0, 2, kNoLimit});
  EXPECT(!fails(0, 1, 10) && state(0, 1).up == 1);
  EXPECT(!fails(0, 1, 10) && state(0, 1).up == 0);
  EXPECT(fails(0, 1, 10) && fails(0, 1, 10) && !fails(1, 0, 10));
  EXPECT(state(0, 1).copies == 2 && state(0, 1).nbytes == 20);
  set_fault(0, 1, {});
  EXPECT(!fails(0, 1, 10) && state(0, 1).up == 1);
}

CASE(a_link_dies_after_so_many_bytes) {
  configure({kMiB, kMiB});
  set_fault(0, 1, {kLinkDies, 0, 0, kNoLimit, 25});
  EXPECT(!fails(0, 1, 10) && !fails(0, 1, 10) && state(0, 1).up == 1);
  EXPECT(fails(0, 1, 10) && state(0, 1).up == 0);
  EXPECT(fails(0, 1, 1));
  configure({kMiB, kMiB});
  EXPECT(!fails(0, 1, 10) && state(0, 1).up == 1);
}

CASE(links_and_figures_that_cannot_be) {
  configure({kMiB, kMiB});
  const LinkModel good = {1e9, 0};
  LinkState now{};
  LinkPassage passage{};
  const LinkFault fault{};
  for (const auto& [source, target] : std::vector<std::pair<int, int>>{{0, 0}, {0, 2}, {2, 0}, {-2, 0}, {-1, -1}}) {
    EXPECT(host().link_set_model(source, target, &good) == kInvalidDevice);
    EXPECT(host().link_set_fault(source, target, &fault) == kInvalidDevice);
    EXPECT(host().link_state(source, target, &now) == kInvalidDevice);
  }
  EXPECT(host().link_begin(0, 2, 1, &passage) == kInvalidDevice);
  const double infinite = std::numeric_limits<double>::infinity();
  for (const LinkModel& bad :
       {LinkModel{-1, 0}, LinkModel{infinite, 0}, LinkModel{std::nan(""), 0}, LinkModel{1, -1}}) {
    EXPECT(host().link_set_model(0, 1, &bad) == kInvalidValue);
  }
  const LinkFault unknown = {7, 0, 0, 0, 0};
  EXPECT(host().link_set_fault(0, 1, &unknown) == kInvalidValue);
  set_model(0, 1, 1e-300, 1e300);  // slower than anything: still a moment that can be told
  EXPECT(begin(0, 1, kMiB).arrival_ns > 0);
}

//     range:   | pages of card 0 | host pages |     copied from one to the other
CASE(a_copy_between_pages_of_two_places_crosses_their_link) {
  configure({kPage, kPage});
  const poolrt::Address range = reserve(2 * kPage);
  const std::vector<poolrt::Pages> pages = {create(0, kPage), create(kHostMemory, kPage)};
  for (std::size_t i = 0; i < 2; ++i) EXPECT_OK(driver().map(range + i * kPage, kPage, pages[i]));
  EXPECT_OK(set_access(range, 2 * kPage, {0}));
  auto* bytes = reinterpret_cast<unsigned char*>(range);
  bytes[0] = bytes[500] = 7;
  EXPECT_OK(driver().copy(range + kPage, range, 1000));
  EXPECT_OK(driver().copy(range + 1000, range, 1000));
  EXPECT(state(0, kHostMemory).copies == 1 && state(0, kHostMemory).nbytes == 1000);
  set_fault(0, kHostMemory, {kLinkLies, kMiddleByte, 0, kNoLimit, kNoLimit});
  EXPECT_OK(driver().copy(range + kPage, range, 1000));
  EXPECT(bytes[kPage] == 7 && bytes[kPage + 500] != 7);
  set_fault(0, kHostMemory, {kLinkDies, 0, 0, 0, kNoLimit});
  EXPECT(driver().copy(range + kPage, range, 1000) == kLinkFailed);
  set_model(kHostMemory, 0, 1e5);
  const auto before = std::chrono::steady_clock::now();
  EXPECT_OK(driver().copy(range, range + kPage, 1000));
  EXPECT(std::chrono::steady_clock::now() - before >= std::chrono::milliseconds(10));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_OK(driver().unmap(range + i * kPage, kPage));
    EXPECT_OK(driver().pages_release(pages[i]));
  }
  EXPECT_OK(driver().range_free(range, 2 * kPage));
  EXPECT(nothing_is_left());
}

CASE(threads_share_a_link) {
  configure({kMiB, kMiB});
  set_model(0, 1, 1e12);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int copy = 0; copy < 500; ++copy) begin(0, 1, 100);
    });
  }
  for (int i = 0; i < 100; ++i) {
    set_fault(0, 1, {kLinkLies, 1, 0, kNoLimit, kNoLimit});
    set_fault(0, 1, {});
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(state(0, 1).copies == 2000 && state(0, 1).nbytes == 200000);
}

}  // namespace
