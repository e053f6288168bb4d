// What the cases of the CUDA driver share. No card is named but 0, except where there are more.
#pragma once

#include <dlfcn.h>

#include "cases.hpp"
#include "driver.hpp"

inline const poolrt::DriverTable& driver() {
  static const poolrt::DriverTable* const table = [] {
    const char* why = nullptr;
    const poolrt::DriverTable* found = poolrt::cuda_driver_table(&why);
    if (found == nullptr) std::fprintf(stderr, "%s\n", why);
    EXPECT(found != nullptr);
    EXPECT_OK(found->init());
    return found;
  }();
  return *table;
}

// A function of libcuda.so.1, or of the fake one, that the table does not have.
template <typename Function>
Function libcuda(const char* symbol) {
  static void* const handle = dlopen("libcuda.so.1", RTLD_NOW);
  const auto function = reinterpret_cast<Function>(dlsym(handle, symbol));
  EXPECT(function != nullptr);
  return function;
}

inline void* current_context() {
  void* context = nullptr;
  EXPECT_OK(libcuda<int (*)(void**)>("cuCtxGetCurrent")(&context));
  return context;
}

inline std::size_t granularity(int place) {
  std::size_t nbytes = 0;
  EXPECT_OK(driver().granularity(place, &nbytes));
  EXPECT(nbytes >= 4096 && (nbytes & (nbytes - 1)) == 0);
  return nbytes;
}

inline poolrt::Pages create(int place, std::size_t nbytes) {
  poolrt::Pages pages = 0;
  EXPECT_OK(driver().pages_create(place, nbytes, &pages));
  EXPECT(pages != 0);
  return pages;
}

inline poolrt::Address reserve(std::size_t nbytes) {
  poolrt::Address range = 0;
  EXPECT_OK(driver().range_reserve(nbytes, 0, &range));
  EXPECT(range != 0);
  return range;
}
