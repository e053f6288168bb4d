// Pages of the HOST driver's cards, the ranges they are mapped into, and who may touch them.
#pragma once

#include <cstddef>

#include "driver.hpp"

namespace poolrt::host_driver {

int granularity(int place, std::size_t* nbytes);
int pages_create(int place, std::size_t nbytes, Pages* pages);
int pages_release(Pages pages);
int range_reserve(std::size_t nbytes, std::size_t alignment, Address* range);
int range_free(Address range, std::size_t nbytes);
int map(Address at, std::size_t nbytes, Pages pages);
int unmap(Address at, std::size_t nbytes);
int set_access(Address at, std::size_t nbytes, const int* cards, int count);
int copy(Address target, Address source, std::size_t nbytes);

int access(Address at, int card, int* allowed);
void count_pages(PageState* state);

}  // namespace poolrt::host_driver
