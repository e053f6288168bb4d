// What libcuda.so.1 expects in memory, so that no CUDA header is needed: the few types and numbers of <cuda.h> that
// poolrt uses. CUDA Driver API reference, "Data types used by CUDA driver" and "Virtual Memory Management".
#pragma once

#include <cstddef>
#include <cstdint>

namespace poolrt::cuda_driver {

using Context = void*;

enum LocationType : int { kLocationDevice = 1, kLocationHostNuma = 3 };  // CUmemLocationType

struct Location {  // CUmemLocation
  int type;
  int id;  // a device's ordinal, or a NUMA node
};

struct AllocationProperties {  // CUmemAllocationProp
  int type;
  int requested_handle_types;
  Location location;
  void* win32_handle_data;
  struct {
    unsigned char compression_type;
    unsigned char rdma_capable;
    unsigned short usage;
    unsigned char reserved[4];
  } flags;
};

struct AccessDescription {  // CUmemAccessDesc
  Location location;
  int flags;
};

inline constexpr int kAllocationPinned = 1;          // CU_MEM_ALLOCATION_TYPE_PINNED
inline constexpr int kGranularityRecommended = 1;    // CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
inline constexpr int kAccessReadWrite = 3;           // CU_MEM_ACCESS_FLAGS_PROT_READWRITE
inline constexpr unsigned kEventDisableTiming = 2;   // CU_EVENT_DISABLE_TIMING
inline constexpr int kNotReady = 600;                // CUDA_ERROR_NOT_READY
inline constexpr int kAttributeHostNumaNode = 134;   // CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID
inline constexpr int kAttributeHostNumaPages = 141;  // ..._HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED

static_assert(sizeof(Location) == 8);
static_assert(sizeof(AllocationProperties) == 32 && offsetof(AllocationProperties, location) == 8);
static_assert(offsetof(AllocationProperties, win32_handle_data) == 16 && offsetof(AllocationProperties, flags) == 24);
static_assert(sizeof(AccessDescription) == 12 && offsetof(AccessDescription, flags) == 8);

}  // namespace poolrt::cuda_driver
