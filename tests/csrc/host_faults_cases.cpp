// Calls of the HOST driver that fail or are late because a test wants it.
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::Event;
using poolrt::Fault;
using poolrt::kInvalidValue;
using poolrt::kOutOfMemory;
using poolrt::Pages;

std::uint64_t calls() {
  std::uint64_t count = 0;
  EXPECT_OK(host().calls(&count));
  return count;
}

void set_fault(const Fault& fault) { EXPECT_OK(host().set_fault(&fault)); }

// Every function that counts, in an order in which each can succeed.
struct Scenario {
  Pages pages = 0;
  Address range = 0;
  Event event = nullptr;
  std::size_t granularity = 0;
  int passed = 0;
  int card = 0;

  std::vector<std::function<int()>> steps() {
    return {
        [&] { return driver().granularity(0, &granularity); },
        [&] { return driver().pages_create(0, kPage, &pages); },
        [&] { return driver().range_reserve(kPage, 0, &range); },
        [&] { return driver().map(range, kPage, pages); },
        [&] { return driver().set_access(range, kPage, &card, 1); },
        [&] { return driver().copy(range, range + kPage / 2, kPage / 2); },
        [&] { return driver().event_record(0, nullptr, &event); },
        [&] { return driver().event_passed(event, &passed); },
        [&] { return driver().event_destroy(event); },
        [&] { return driver().drain(0); },
        [&] { return driver().unmap(range, kPage); },
        [&] { return driver().pages_release(pages); },
        [&] { return driver().range_free(range, kPage); },
    };
  }
};

bool same(const poolrt::PageState& a, const poolrt::PageState& b) { return std::memcmp(&a, &b, sizeof(a)) == 0; }

CASE(every_call_is_counted_once) {
  configure({16 * kMiB});
  Scenario scenario;
  std::uint64_t before = calls();
  for (const auto& step : scenario.steps()) {
    EXPECT_OK(step());
    EXPECT(calls() == ++before);
  }
  allocate(0, 0);
  EXPECT(calls() == before && nothing_is_left());
}

CASE(every_call_can_fail_and_has_then_done_nothing) {
  configure({16 * kMiB});
  Scenario scenario;
  for (const auto& step : scenario.steps()) {
    const poolrt::PageState state = page_state();
    const std::size_t used = ledger(0).used_nbytes;
    const Scenario before = scenario;
    set_fault({1, 999, 0, 1});
    EXPECT(step() == 999);
    EXPECT(same(page_state(), state) && ledger(0).used_nbytes == used);
    EXPECT(std::memcmp(&before, &scenario, sizeof(before)) == 0);
    EXPECT_OK(step());
  }
  EXPECT_OK(host().clear_fault());
  EXPECT(nothing_is_left());
}

CASE(a_fault_begins_and_ends_at_a_call) {
  configure({16 * kMiB});
  std::size_t nbytes = 0;
  const auto call = [&] { return driver().granularity(0, &nbytes); };
  set_fault({3, kOutOfMemory, 0, 2});
  EXPECT(call() == 0 && call() == 0 && call() == kOutOfMemory && call() == kOutOfMemory && call() == 0);
  set_fault({1, kOutOfMemory, 0, UINT64_MAX});
  EXPECT(call() == kOutOfMemory && call() == kOutOfMemory);
  EXPECT_OK(host().clear_fault());
  EXPECT_OK(call());
  const Fault none = {0, kOutOfMemory, 0, 1};
  const Fault empty = {1, kOutOfMemory, 0, 0};
  EXPECT(host().set_fault(&none) == kInvalidValue && host().set_fault(&empty) == kInvalidValue);
  EXPECT_OK(call());
}

// Late is not undone: another thread sees what was made before the call has returned.
CASE(a_late_call_has_done_its_work_before_it_returns) {
  configure({16 * kMiB});
  set_fault({1, 0, 500000, 1});
  std::atomic<bool> returned{false};
  std::thread slow([&] {
    const Pages pages = create(0, kPage);
    returned = true;
    EXPECT_OK(driver().pages_release(pages));
  });
  bool seen_before_return = false;
  while (!returned) {
    const bool made = page_state().handle_count == 1;
    seen_before_return = seen_before_return || (made && !returned);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  slow.join();
  EXPECT(seen_before_return);
  EXPECT_OK(host().clear_fault());
}

CASE(a_late_call_keeps_no_other_waiting) {
  configure({16 * kMiB});
  set_fault({1, kOutOfMemory, 500000, 1});
  const std::uint64_t before = calls();
  std::atomic<bool> returned{false};
  std::thread slow([&] {
    Pages pages = 0;
    EXPECT(driver().pages_create(0, kPage, &pages) == kOutOfMemory);
    returned = true;
  });
  while (calls() == before) std::this_thread::yield();
  EXPECT_OK(driver().pages_release(create(0, kPage)));
  EXPECT(!returned);
  slow.join();
  EXPECT_OK(host().clear_fault());
}

// Exactly `count` calls fail, whichever threads make them.
CASE(threads_share_a_fault) {
  configure({16 * kMiB});
  set_fault({100, 999, 0, 50});
  std::atomic<int> failed{0};
  const auto work = [&] {
    std::size_t nbytes = 0;
    for (int i = 0; i < 1000; ++i) failed += driver().granularity(0, &nbytes) == 999 ? 1 : 0;
  };
  std::vector<std::thread> threads;
  for (int number = 0; number < 4; ++number) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  EXPECT(failed == 50);
  EXPECT_OK(host().clear_fault());
}

}  // namespace
