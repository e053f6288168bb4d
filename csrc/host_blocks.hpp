// Ordinary blocks of a card's memory, or of host memory that no ledger counts: what a virtual card's tensors live in.
#pragma once

#include <cstddef>

namespace poolrt::host_driver {

int block_allocate(int card, std::size_t nbytes, void** pointer);
int block_retain(void* pointer);
int block_free(void* pointer);
int block_card(void* pointer, int* card);

}  // namespace poolrt::host_driver
