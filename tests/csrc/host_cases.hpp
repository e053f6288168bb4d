// What the cases of the HOST driver share.
#pragma once

#include <vector>

#include "cases.hpp"
#include "driver.hpp"

inline constexpr std::size_t kMiB = 1 << 20;
inline constexpr std::size_t kPage = 2 * kMiB;  // the granularity of every place

inline const poolrt::HostTable& host() { return *poolrt::host_driver_table(); }
inline const poolrt::DriverTable& driver() { return host().driver; }

inline poolrt::Ledger ledger(int place) {
  poolrt::Ledger now{};
  EXPECT_OK(host().ledger(place, &now));
  return now;
}

inline poolrt::PageState page_state() {
  poolrt::PageState now{};
  EXPECT_OK(host().page_state(&now));
  return now;
}

inline void configure(const std::vector<std::size_t>& capacities) {
  EXPECT_OK(host().configure(static_cast<int>(capacities.size()), capacities.data()));
}

inline void* allocate(int card, std::size_t nbytes) {
  void* block = nullptr;
  EXPECT_OK(host().memory_allocate(card, nbytes, &block));
  return block;
}

inline poolrt::Stream create_stream(int card) {
  poolrt::Stream stream = nullptr;
  EXPECT_OK(host().stream_create(card, &stream));
  EXPECT(stream != nullptr);
  return stream;
}

inline bool passed(poolrt::Event event) {
  int answer = -1;
  EXPECT_OK(driver().event_passed(event, &answer));
  EXPECT(answer == 0 || answer == 1);
  return answer == 1;
}

inline void set_model(int source, int target, double bytes_per_s, double latency_s = 0) {
  const poolrt::LinkModel model = {bytes_per_s, latency_s};
  EXPECT_OK(host().link_set_model(source, target, &model));
}

inline poolrt::Pages create(int place, std::size_t nbytes) {
  poolrt::Pages pages = 0;
  EXPECT_OK(driver().pages_create(place, nbytes, &pages));
  EXPECT(pages != 0);
  return pages;
}

inline poolrt::Address reserve(std::size_t nbytes, std::size_t alignment = 0) {
  poolrt::Address range = 0;
  EXPECT_OK(driver().range_reserve(nbytes, alignment, &range));
  EXPECT(range != 0);
  return range;
}

inline int set_access(poolrt::Address at, std::size_t nbytes, const std::vector<int>& cards) {
  return driver().set_access(at, nbytes, cards.data(), static_cast<int>(cards.size()));
}

inline bool may_touch(poolrt::Address at, int card) {
  int allowed = -1;
  EXPECT_OK(host().access(at, card, &allowed));
  return allowed == 1;
}

inline bool nothing_is_left() {
  const poolrt::PageState now = page_state();
  return now.handle_count == 0 && now.mapping_count == 0 && now.mapped_nbytes == 0 && now.reserved_nbytes == 0 &&
         now.event_count == 0 && now.stream_count == 0;
}
