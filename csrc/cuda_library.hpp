// libcuda.so.1, opened at run time. The signatures are those of the CUDA Driver API reference
// (docs.nvidia.com/cuda/cuda-driver-api); CUdevice is an int and CUcontext, CUstream and CUevent are pointers there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "cuda_abi.hpp"
#include "driver.hpp"

namespace poolrt::cuda_driver {

// Stays open for the life of the process once every function that is needed was found.
class Library {
 public:
  Library();

  template <typename Function>
  void need(const char* symbol, Function& function) {
    find(symbol, function);
    if (handle_ && why_.empty() && function == nullptr) why_ = std::string("libcuda.so.1 has no function ") + symbol;
  }

  // Null if it is not there.
  template <typename Function>
  void find(const char* symbol, Function& function) {
    function = reinterpret_cast<Function>(address_of(symbol));
  }

  const std::string& why() const { return why_; }

 private:
  struct Close {
    void operator()(void* handle) const;
  };

  void* address_of(const char* symbol) const;

  std::unique_ptr<void, Close> handle_;
  std::string why_;
};

// Which functions poolrt calls. A driver without the second group can still be asked what is there.
struct Cuda {
  Library library;

  int (*init)(unsigned flags) = nullptr;
  int (*version)(int* version) = nullptr;
  int (*count)(int* count) = nullptr;
  int (*device)(int* device, int ordinal) = nullptr;
  int (*name)(char* text, int capacity, int device) = nullptr;
  int (*total_memory)(std::size_t* nbytes, int device) = nullptr;
  int (*can_access_peer)(int* possible, int device, int peer) = nullptr;
  int (*error_name)(int status, const char** name) = nullptr;
  int (*context_retain)(Context* context, int device) = nullptr;
  int (*context_release)(int device) = nullptr;
  int (*context_push)(Context context) = nullptr;
  int (*context_pop)(Context* context) = nullptr;
  int (*memory_info)(std::size_t* free_nbytes, std::size_t* total_nbytes) = nullptr;

  int (*attribute)(int* value, int attribute, int device) = nullptr;
  int (*context_current)(Context* context) = nullptr;
  int (*context_synchronize)() = nullptr;
  int (*stream_synchronize)(Stream stream) = nullptr;
  int (*granularity)(std::size_t* nbytes, const AllocationProperties* properties, int option) = nullptr;
  int (*pages_create)(Pages* pages, std::size_t nbytes, const AllocationProperties* properties,
                      unsigned long long flags) = nullptr;
  int (*pages_release)(Pages pages) = nullptr;
  int (*range_reserve)(Address* range, std::size_t nbytes, std::size_t alignment, Address wish,
                       unsigned long long flags) = nullptr;
  int (*range_free)(Address range, std::size_t nbytes) = nullptr;
  int (*map)(Address at, std::size_t nbytes, std::size_t offset, Pages pages, unsigned long long flags) = nullptr;
  int (*unmap)(Address at, std::size_t nbytes) = nullptr;
  int (*set_access)(Address at, std::size_t nbytes, const AccessDescription* descriptions, std::size_t count) = nullptr;
  int (*event_create)(Event* event, unsigned flags) = nullptr;
  int (*event_record)(Event event, Stream stream) = nullptr;
  int (*event_query)(Event event) = nullptr;
  int (*event_destroy)(Event event) = nullptr;
  int (*copy)(Address target, Address source, std::size_t nbytes) = nullptr;

  Cuda();
};

const Cuda& cuda();

// Calls a function of the second group, which may not be there.
template <typename... Parameters, typename... Arguments>
int call(int (*function)(Parameters...), Arguments... arguments) {
  return function == nullptr ? kNotSupported : function(arguments...);
}

}  // namespace poolrt::cuda_driver
