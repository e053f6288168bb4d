#include "host_address_range.hpp"

#include <sys/mman.h>

#include <limits>

namespace poolrt::host_driver {
namespace {

constexpr int kNothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

void* pointer(Address at) { return reinterpret_cast<void*>(at); }

void give_back(Address begin, Address end) {
  if (begin != end) munmap(pointer(begin), end - begin);
}

}  // namespace

//     asked of the system:   |  nbytes + alignment              |
//     kept:                  |given back| nbytes    |given back|      begins at a multiple of the alignment
std::optional<AddressRange> AddressRange::reserve(std::size_t nbytes, std::size_t alignment) {
  if (nbytes > std::numeric_limits<std::size_t>::max() - alignment) return std::nullopt;
  void* found = mmap(nullptr, nbytes + alignment, PROT_NONE, kNothing, -1, 0);
  if (found == MAP_FAILED) return std::nullopt;
  const Address first = reinterpret_cast<Address>(found);
  const Address begin = (first + alignment - 1) & ~(static_cast<Address>(alignment) - 1);
  give_back(first, begin);
  give_back(begin + nbytes, first + nbytes + alignment);
  return AddressRange(begin, nbytes);
}

AddressRange::~AddressRange() { give_back(begin(), end()); }

bool AddressRange::place_file(Address at, std::size_t nbytes, int descriptor, off_t offset) {
  return mmap(pointer(at), nbytes, PROT_NONE, MAP_SHARED | MAP_FIXED, descriptor, offset) != MAP_FAILED;
}

bool AddressRange::place_nothing(Address at, std::size_t nbytes) {
  return mmap(pointer(at), nbytes, PROT_NONE, kNothing | MAP_FIXED, -1, 0) != MAP_FAILED;
}

bool AddressRange::allow_touch(Address at, std::size_t nbytes) {
  return mprotect(pointer(at), nbytes, PROT_READ | PROT_WRITE) == 0;
}

}  // namespace poolrt::host_driver
