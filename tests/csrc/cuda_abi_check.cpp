// Compiled, never run: csrc/cuda_abi.hpp and the signatures of csrc/cuda_library.hpp beside the real <cuda.h>.
#include <cuda.h>

#include <type_traits>

#include "cuda_abi.hpp"
#include "cuda_library.hpp"

namespace poolrt::cuda_driver {

static_assert(sizeof(Location) == sizeof(CUmemLocation) && offsetof(Location, id) == offsetof(CUmemLocation, id));
static_assert(sizeof(AllocationProperties) == sizeof(CUmemAllocationProp));
static_assert(offsetof(AllocationProperties, requested_handle_types) ==
              offsetof(CUmemAllocationProp, requestedHandleTypes));
static_assert(offsetof(AllocationProperties, location) == offsetof(CUmemAllocationProp, location));
static_assert(offsetof(AllocationProperties, win32_handle_data) == offsetof(CUmemAllocationProp, win32HandleMetaData));
static_assert(offsetof(AllocationProperties, flags) == offsetof(CUmemAllocationProp, allocFlags));
static_assert(sizeof(AccessDescription) == sizeof(CUmemAccessDesc));
static_assert(offsetof(AccessDescription, flags) == offsetof(CUmemAccessDesc, flags));

static_assert(int{kLocationDevice} == int{CU_MEM_LOCATION_TYPE_DEVICE});
static_assert(int{kLocationHostNuma} == int{CU_MEM_LOCATION_TYPE_HOST_NUMA});
static_assert(kAllocationPinned == CU_MEM_ALLOCATION_TYPE_PINNED);
static_assert(kGranularityRecommended == CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
static_assert(kAccessReadWrite == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
static_assert(kEventDisableTiming == CU_EVENT_DISABLE_TIMING);
static_assert(kAttributeHostNumaNode == CU_DEVICE_ATTRIBUTE_HOST_NUMA_ID);
#if CUDA_VERSION >= 13000
static_assert(kAttributeHostNumaPages == CU_DEVICE_ATTRIBUTE_HOST_NUMA_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED);
#endif

static_assert(kNotReady == CUDA_ERROR_NOT_READY && int{kSuccess} == int{CUDA_SUCCESS});
static_assert(int{kInvalidValue} == int{CUDA_ERROR_INVALID_VALUE});
static_assert(int{kOutOfMemory} == int{CUDA_ERROR_OUT_OF_MEMORY});
static_assert(int{kNotInitialized} == int{CUDA_ERROR_NOT_INITIALIZED});
static_assert(int{kNoDevice} == int{CUDA_ERROR_NO_DEVICE});
static_assert(int{kInvalidDevice} == int{CUDA_ERROR_INVALID_DEVICE});
static_assert(int{kOperatingSystem} == int{CUDA_ERROR_OPERATING_SYSTEM});
static_assert(int{kInvalidHandle} == int{CUDA_ERROR_INVALID_HANDLE});
static_assert(int{kNotFound} == int{CUDA_ERROR_NOT_FOUND});
static_assert(int{kNotSupported} == int{CUDA_ERROR_NOT_SUPPORTED});

// Whether two parameters travel alike: pointers as pointers, integers and enumerations by their size.
template <typename Ours, typename Theirs>
constexpr bool travel_alike() {
  if (std::is_pointer_v<Ours> || std::is_pointer_v<Theirs>) {
    if (!std::is_pointer_v<Ours> || !std::is_pointer_v<Theirs>) return false;
    using A = std::remove_pointer_t<Ours>;
    using B = std::remove_pointer_t<Theirs>;
    if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>) return std::is_pointer_v<A> && std::is_pointer_v<B>;
    if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) return sizeof(A) == sizeof(B);
    return std::is_const_v<A> == std::is_const_v<B> || std::is_void_v<A>;
  }
  return sizeof(Ours) == sizeof(Theirs) && std::is_class_v<Ours> == std::is_class_v<Theirs>;
}

template <typename... Ours, typename... Theirs>
constexpr bool fits(int (*)(Ours...), CUresult (*)(Theirs...)) {
  if constexpr (sizeof...(Ours) != sizeof...(Theirs))
    return false;
  else
    return (travel_alike<Ours, Theirs>() && ...);
}

#define FITS(member, function) static_assert(fits(decltype(Cuda::member){}, decltype(&function){}))
FITS(init, cuInit);
FITS(version, cuDriverGetVersion);
FITS(count, cuDeviceGetCount);
FITS(device, cuDeviceGet);
FITS(name, cuDeviceGetName);
FITS(total_memory, cuDeviceTotalMem);
FITS(can_access_peer, cuDeviceCanAccessPeer);
FITS(error_name, cuGetErrorName);
FITS(context_retain, cuDevicePrimaryCtxRetain);
FITS(context_release, cuDevicePrimaryCtxRelease);
FITS(context_push, cuCtxPushCurrent);
FITS(context_pop, cuCtxPopCurrent);
FITS(memory_info, cuMemGetInfo);
FITS(attribute, cuDeviceGetAttribute);
FITS(context_current, cuCtxGetCurrent);
FITS(stream_synchronize, cuStreamSynchronize);
FITS(granularity, cuMemGetAllocationGranularity);
FITS(pages_create, cuMemCreate);
FITS(pages_release, cuMemRelease);
FITS(range_reserve, cuMemAddressReserve);
FITS(range_free, cuMemAddressFree);
FITS(map, cuMemMap);
FITS(unmap, cuMemUnmap);
FITS(set_access, cuMemSetAccess);
FITS(event_create, cuEventCreate);
FITS(event_record, cuEventRecord);
FITS(event_query, cuEventQuery);
FITS(event_destroy, cuEventDestroy);
FITS(copy, cuMemcpy);

}  // namespace poolrt::cuda_driver
