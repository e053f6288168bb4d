// The CUDA driver on the fake libcuda: what is asked of the library, how often, and what happens when it refuses.
#include <cstring>
#include <string>
#include <thread>

#include "cuda_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::Event;
using poolrt::kHostMemory;
using poolrt::kNotSupported;
using poolrt::kOutOfMemory;
using poolrt::Pages;
using poolrt::Stream;

constexpr std::size_t kPage = 2 << 20;

int calls(const char* function) { return libcuda<int (*)(const char*)>("fake_cuda_calls")(function); }
int live(const char* what) { return libcuda<int (*)(const char*)>("fake_cuda_live")(what); }
void fail(const char* function, int status) { libcuda<void (*)(const char*, int)>("fake_cuda_fail")(function, status); }
void set_attribute(int attribute, int status, int value) {
  libcuda<void (*)(int, int, int)>("fake_cuda_set_attribute")(attribute, status, value);
}

constexpr int kNumaNode = 134;
constexpr int kHostPages = 141;

bool nothing_is_left() {
  return live("pages") == 0 && live("range") == 0 && live("mapping") == 0 && live("event") == 0 && live("copy") == 0 &&
         calls("cuCtxPushCurrent_v2") == calls("cuCtxPopCurrent_v2");
}

struct MappedPage {
  Address at = reserve(kPage);
  explicit MappedPage(int place) {
    const Pages pages = create(place, kPage);
    EXPECT_OK(driver().map(at, kPage, pages));
    EXPECT_OK(driver().pages_release(pages));
  }
  ~MappedPage() {
    EXPECT_OK(driver().unmap(at, kPage));
    EXPECT_OK(driver().range_free(at, kPage));
  }
};

CASE(a_context_is_retained_once_for_each_card_in_use) {
  for (int i = 0; i < 20; ++i) {
    Event event = nullptr;
    int passed = 0;
    EXPECT_OK(driver().event_record(i % 2, reinterpret_cast<Stream>(0x77), &event));
    EXPECT_OK(driver().event_passed(event, &passed));
    EXPECT_OK(driver().event_destroy(event));
  }
  EXPECT(calls("cuDevicePrimaryCtxRetain") == 2 && live("context") == 2);
  EXPECT(calls("cuEventRecord") == 20 && nothing_is_left());
}

CASE(to_ask_how_full_a_card_is_keeps_no_context) {
  std::size_t free_nbytes = 0;
  std::size_t total_nbytes = 0;
  EXPECT_OK(driver().memory_info(1, &free_nbytes, &total_nbytes));
  EXPECT(free_nbytes == 2000 && total_nbytes == 4000 && live("context") == 0 && nothing_is_left());
}

CASE(a_context_that_is_current_serves_where_any_will_do) {
  const auto push = libcuda<int (*)(void*)>("cuCtxPushCurrent_v2");
  const auto pop = libcuda<int (*)(void**)>("cuCtxPopCurrent_v2");
  void* context = reinterpret_cast<void*>(0x1001);
  EXPECT_OK(driver().init());
  EXPECT_OK(push(context));
  EXPECT_OK(driver().range_free(reserve(kPage), kPage));
  const Pages pages = create(kHostMemory, kPage);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT(calls("cuDevicePrimaryCtxRetain") == 0 && calls("cuCtxPushCurrent_v2") == 1);
  EXPECT_OK(pop(&context));
  EXPECT(nothing_is_left());
}

CASE(without_a_current_context_a_kept_one_is_taken_and_none_is_made) {
  EXPECT_OK(driver().range_free(reserve(kPage), kPage));
  EXPECT_OK(driver().pages_release(create(kHostMemory, kPage)));
  EXPECT(calls("cuDevicePrimaryCtxRetain") == 0 && calls("cuCtxPushCurrent_v2") == 0);
  EXPECT_OK(driver().drain(1));
  EXPECT_OK(driver().range_free(reserve(kPage), kPage));
  EXPECT(calls("cuDevicePrimaryCtxRetain") == 1 && calls("cuCtxPushCurrent_v2") == 3);  // card 0 was left alone
  EXPECT(nothing_is_left());
}

CASE(a_copy_without_a_card_works_in_the_context_of_card_0) {
  const unsigned char source[3] = {1, 2, 3};
  unsigned char target[3] = {};
  EXPECT_OK(driver().copy(reinterpret_cast<Address>(target), reinterpret_cast<Address>(source), 3));
  EXPECT(std::memcmp(source, target, 3) == 0 && calls("cuDevicePrimaryCtxRetain") == 1 && nothing_is_left());
}

CASE(an_event_that_cannot_be_recorded_is_destroyed) {
  Event event = nullptr;
  for (const char* function : {"cuEventCreate", "cuEventRecord", "cuCtxPushCurrent_v2", "cuDevicePrimaryCtxRetain"}) {
    if (std::strcmp(function, "cuDevicePrimaryCtxRetain") == 0) {
      fail(function, kOutOfMemory);
      EXPECT(driver().event_record(1, nullptr, &event) == kOutOfMemory);
      break;
    }
    EXPECT_OK(driver().drain(0));
    fail(function, kOutOfMemory);
    EXPECT(driver().event_record(0, nullptr, &event) == kOutOfMemory);
  }
  EXPECT(event == nullptr && live("event") == 0);
  EXPECT_OK(driver().event_record(1, nullptr, &event));
  EXPECT_OK(driver().event_destroy(event));
}

CASE(an_event_has_not_passed_while_the_driver_is_not_ready) {
  Event event = nullptr;
  int passed = -1;
  EXPECT_OK(driver().event_record(0, nullptr, &event));
  fail("cuEventQuery", 600);
  EXPECT(driver().event_passed(event, &passed) == poolrt::kSuccess && passed == 0);
  fail("cuEventQuery", 700);
  EXPECT(driver().event_passed(event, &passed) == 700 && passed == 0);
  EXPECT(driver().event_passed(event, &passed) == poolrt::kSuccess && passed == 1);
  fail("cuEventDestroy_v2", 700);
  EXPECT(driver().event_destroy(event) == 700);
  EXPECT_OK(driver().event_destroy(event));
  EXPECT(nothing_is_left());
}

CASE(the_host_pages_node_is_the_one_nearest_to_card_0) {
  EXPECT_OK(driver().init());
  set_attribute(kNumaNode, 0, 3);  // the fake compares it with what is asked for
  EXPECT_OK(driver().pages_release(create(kHostMemory, kPage)));
  EXPECT(nothing_is_left());
}

CASE(a_machine_without_numa_has_node_0) {
  EXPECT_OK(driver().init());
  set_attribute(kNumaNode, 0, -1);
  std::size_t nbytes = 0;
  EXPECT_OK(driver().granularity(kHostMemory, &nbytes));
  set_attribute(kNumaNode, 0, 0);
  EXPECT_OK(driver().pages_release(create(kHostMemory, kPage)));
}

CASE(a_driver_that_has_no_host_pages_says_so) {
  EXPECT_OK(driver().init());
  set_attribute(kHostPages, 0, 0);
  std::size_t nbytes = 0;
  Pages pages = 0;
  EXPECT(driver().granularity(kHostMemory, &nbytes) == kNotSupported);
  EXPECT(driver().pages_create(kHostMemory, kPage, &pages) == kNotSupported && pages == 0);
  set_attribute(kHostPages, 1, 0);  // a driver that does not know the question
  EXPECT_OK(driver().pages_release(create(kHostMemory, kPage)));
}

CASE(the_processor_is_let_in_on_host_pages_only) {
  const int cards[] = {0, 1};
  {
    const MappedPage of_card(0);
    EXPECT_OK(driver().set_access(of_card.at, kPage, cards, 2));
    EXPECT(calls("cuMemSetAccess") == 1);
    const MappedPage of_host(kHostMemory);
    EXPECT_OK(driver().set_access(of_host.at, kPage, cards, 2));
    EXPECT(calls("cuMemSetAccess") == 3);
    fail("cuMemSetAccess", kOutOfMemory);
    EXPECT(driver().set_access(of_host.at, kPage, cards, 2) == kOutOfMemory);
    EXPECT(calls("cuMemSetAccess") == 4);
  }
  EXPECT(nothing_is_left());
}

CASE(a_mapping_that_was_refused_is_not_remembered) {
  const Address range = reserve(kPage);
  const Pages pages = create(0, kPage);
  fail("cuMemMap", kOutOfMemory);
  EXPECT(driver().map(range, kPage, pages) == kOutOfMemory);
  EXPECT_OK(driver().map(range, kPage, pages));
  fail("cuMemUnmap", 999);
  EXPECT(driver().unmap(range, kPage) == 999);
  EXPECT(driver().map(range, kPage, pages) == poolrt::kInvalidValue);
  EXPECT_OK(driver().unmap(range, kPage));
  fail("cuMemRelease", 999);
  EXPECT(driver().pages_release(pages) == 999);
  EXPECT_OK(driver().pages_release(pages));
  EXPECT_OK(driver().range_free(range, kPage));
  EXPECT(nothing_is_left());
}

CASE(a_copy_works_in_the_context_of_its_card_and_waits) {
  const int cards[] = {0, 1};
  {
    const MappedPage of_second(1);
    const MappedPage of_host(kHostMemory);
    EXPECT_OK(driver().set_access(of_second.at, kPage, cards, 2));
    EXPECT_OK(driver().set_access(of_host.at, kPage, cards, 2));
    EXPECT_OK(driver().copy(of_second.at, of_host.at, kPage));
    EXPECT_OK(driver().copy(of_host.at, of_second.at, kPage));
    EXPECT(calls("cuMemcpy") == 2 && live("copy") == 0);
    EXPECT(calls("cuDevicePrimaryCtxRetain") == 1);  // never card 0's
    fail("cuMemcpy", 700);
    EXPECT(driver().copy(of_host.at, of_second.at, kPage) == 700);
    fail("cuStreamSynchronize", 700);
    EXPECT(driver().copy(of_host.at, of_second.at, kPage) == 700);
    EXPECT_OK(driver().drain(1));
  }
  EXPECT(nothing_is_left());
}

CASE(too_many_cards_are_refused) {
  const int cards[poolrt::kMaxCards + 1] = {};
  EXPECT(driver().set_access(kPage, kPage, cards, 0) == poolrt::kInvalidValue);
  EXPECT(driver().set_access(kPage, kPage, cards, poolrt::kMaxCards + 1) == poolrt::kInvalidValue);
  EXPECT(calls("cuMemSetAccess") == 0);
}

}  // namespace
