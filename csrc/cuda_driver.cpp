// The CUDA filling of the driver table, from libcuda.so.1 at run time. The signatures are those of the CUDA Driver API
// reference (docs.nvidia.com/cuda/cuda-driver-api); CUdevice is an int and CUcontext a pointer there.
#include <dlfcn.h>

#include <memory>
#include <string>

#include "driver.hpp"

namespace poolrt {
namespace {

using Context = void*;

// The library stays open for the life of the process once every function was found.
class Library {
 public:
  Library() : handle_(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) why_ = dlerror();
  }

  template <typename Function>
  void find(const char* symbol, Function& function) {
    if (!handle_ || !why_.empty()) return;
    function = reinterpret_cast<Function>(dlsym(handle_.get(), symbol));
    if (function == nullptr) why_ = std::string("libcuda.so.1 has no function ") + symbol;
  }

  const std::string& why() const { return why_; }

 private:
  struct Close {
    void operator()(void* handle) const { dlclose(handle); }
  };
  std::unique_ptr<void, Close> handle_;
  std::string why_;
};

struct Cuda {
  Library library;
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count)(int*) = nullptr;
  int (*device)(int*, int) = nullptr;
  int (*name)(char*, int, int) = nullptr;
  int (*total_memory)(std::size_t*, int) = nullptr;
  int (*can_access_peer)(int*, int, int) = nullptr;
  int (*error_name)(int, const char**) = nullptr;
  int (*context_retain)(Context*, int) = nullptr;
  int (*context_release)(int) = nullptr;
  int (*context_push)(Context) = nullptr;
  int (*context_pop)(Context*) = nullptr;
  int (*memory_info)(std::size_t*, std::size_t*) = nullptr;

  Cuda() {
    library.find("cuInit", init);
    library.find("cuDriverGetVersion", version);
    library.find("cuDeviceGetCount", count);
    library.find("cuDeviceGet", device);
    library.find("cuDeviceGetName", name);
    library.find("cuDeviceTotalMem_v2", total_memory);
    library.find("cuDeviceCanAccessPeer", can_access_peer);
    library.find("cuGetErrorName", error_name);
    library.find("cuDevicePrimaryCtxRetain", context_retain);
    library.find("cuDevicePrimaryCtxRelease_v2", context_release);
    library.find("cuCtxPushCurrent_v2", context_push);
    library.find("cuCtxPopCurrent_v2", context_pop);
    library.find("cuMemGetInfo_v2", memory_info);
  }
};

Cuda& cuda() {
  static auto* instance = new Cuda;
  return *instance;
}

// Keeps a card's primary context alive and current for one scope: cuMemGetInfo answers for the current context only.
class PrimaryContext {
 public:
  explicit PrimaryContext(int device) : device_(device) {
    Context context = nullptr;
    status_ = cuda().context_retain(&context, device_);
    retained_ = status_ == kSuccess;
    if (retained_) status_ = cuda().context_push(context);
    pushed_ = retained_ && status_ == kSuccess;
  }
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  ~PrimaryContext() {
    Context popped = nullptr;
    if (pushed_) cuda().context_pop(&popped);
    if (retained_) cuda().context_release(device_);
  }

  int status() const { return status_; }

 private:
  int device_;
  int status_ = kNotInitialized;
  bool retained_ = false;
  bool pushed_ = false;
};

int init() { return cuda().init(0); }
int driver_version(int* version) { return cuda().version(version); }
int device_count(int* count) { return cuda().count(count); }

int device_name(int card, char* text, std::size_t capacity) {
  int device = 0;
  if (const int status = cuda().device(&device, card)) return status;
  return cuda().name(text, static_cast<int>(capacity), device);
}

int total_memory(int card, std::size_t* nbytes) {
  int device = 0;
  if (const int status = cuda().device(&device, card)) return status;
  return cuda().total_memory(nbytes, device);
}

int memory_info(int card, std::size_t* free_nbytes, std::size_t* total_nbytes) {
  int device = 0;
  if (const int status = cuda().device(&device, card)) return status;
  const PrimaryContext context(device);
  return context.status() ? context.status() : cuda().memory_info(free_nbytes, total_nbytes);
}

int can_access_peer(int card, int peer, int* possible) {
  int device = 0;
  int other = 0;
  if (const int status = cuda().device(&device, card)) return status;
  if (const int status = cuda().device(&other, peer)) return status;
  return cuda().can_access_peer(possible, device, other);
}

const char* status_name(int status) {
  const char* name = nullptr;
  return cuda().error_name(status, &name) == kSuccess && name != nullptr ? name : "UNKNOWN";
}

constexpr DriverTable kTable = {
    "CUDA", init, driver_version, device_count, device_name, total_memory, memory_info, can_access_peer, status_name,
};

}  // namespace

const DriverTable* cuda_driver_table(const char** why) {
  *why = cuda().library.why().c_str();
  return cuda().library.why().empty() ? &kTable : nullptr;
}

}  // namespace poolrt
