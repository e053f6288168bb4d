// The CUDA driver on a fake libcuda that has no virtual memory management: it answers what it can.
#include <string>

#include "cuda_cases.hpp"

namespace {

using poolrt::kNotSupported;

CASE(a_driver_without_pages_can_still_be_asked_what_is_there) {
  int count = 0;
  EXPECT(driver().device_count(&count) == poolrt::kSuccess && count == 2);
  std::size_t nbytes = 77;
  EXPECT(driver().granularity(0, &nbytes) == kNotSupported && nbytes == 77);
  poolrt::Pages pages = 77;
  poolrt::Address range = 77;
  const int card = 0;
  EXPECT(driver().pages_create(0, nbytes, &pages) == kNotSupported && pages == 77);
  EXPECT(driver().pages_release(pages) == kNotSupported);
  EXPECT(driver().range_reserve(nbytes, 0, &range) == kNotSupported && range == 77);
  EXPECT(driver().range_free(range, nbytes) == kNotSupported);
  EXPECT(driver().unmap(range, nbytes) == kNotSupported);
  EXPECT(driver().set_access(range, nbytes, &card, 1) == kNotSupported);
  EXPECT_OK(driver().drain(0));
}

}  // namespace
