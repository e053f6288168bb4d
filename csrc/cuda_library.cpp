#include "cuda_library.hpp"

#include <dlfcn.h>

namespace poolrt::cuda_driver {

Library::Library() : handle_(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
  if (!handle_) why_ = dlerror();
}

void Library::Close::operator()(void* handle) const { dlclose(handle); }

void* Library::address_of(const char* symbol) const { return handle_ ? dlsym(handle_.get(), symbol) : nullptr; }

Cuda::Cuda() {
  library.need("cuInit", init);
  library.need("cuDriverGetVersion", version);
  library.need("cuDeviceGetCount", count);
  library.need("cuDeviceGet", device);
  library.need("cuDeviceGetName", name);
  library.need("cuDeviceTotalMem_v2", total_memory);
  library.need("cuDeviceCanAccessPeer", can_access_peer);
  library.need("cuGetErrorName", error_name);
  library.need("cuDevicePrimaryCtxRetain", context_retain);
  library.need("cuDevicePrimaryCtxRelease_v2", context_release);
  library.need("cuCtxPushCurrent_v2", context_push);
  library.need("cuCtxPopCurrent_v2", context_pop);
  library.need("cuMemGetInfo_v2", memory_info);

  library.find("cuDeviceGetAttribute", attribute);
  library.find("cuCtxGetCurrent", context_current);
  library.find("cuCtxSynchronize", context_synchronize);
  library.find("cuStreamSynchronize", stream_synchronize);
  library.find("cuMemGetAllocationGranularity", granularity);
  library.find("cuMemCreate", pages_create);
  library.find("cuMemRelease", pages_release);
  library.find("cuMemAddressReserve", range_reserve);
  library.find("cuMemAddressFree", range_free);
  library.find("cuMemMap", map);
  library.find("cuMemUnmap", unmap);
  library.find("cuMemSetAccess", set_access);
  library.find("cuEventCreate", event_create);
  library.find("cuEventRecord", event_record);
  library.find("cuEventQuery", event_query);
  library.find("cuEventDestroy_v2", event_destroy);
  library.find("cuMemcpy", copy);
}

const Cuda& cuda() {
  static const auto* instance = new Cuda;
  return *instance;
}

}  // namespace poolrt::cuda_driver
