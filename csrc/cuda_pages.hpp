// Pages of the cards and of the host, through libcuda's virtual memory management.
#pragma once

#include <cstddef>

#include "driver.hpp"

namespace poolrt::cuda_driver {

int granularity(int place, std::size_t* nbytes);
int pages_create(int place, std::size_t nbytes, Pages* pages);
int pages_release(Pages pages);
int range_reserve(std::size_t nbytes, std::size_t alignment, Address* range);
int range_free(Address range, std::size_t nbytes);
int map(Address at, std::size_t nbytes, Pages pages);
int unmap(Address at, std::size_t nbytes);
int set_access(Address at, std::size_t nbytes, const int* cards, int count);
int copy(Address target, Address source, std::size_t nbytes);

}  // namespace poolrt::cuda_driver
