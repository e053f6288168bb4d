// A libcuda.so.1 without a GPU: two devices made of host memory. It says, and ends the program, when it is called in a
// way that <cuda.h> does not allow; the types are written here once more so that a slip in csrc/cuda_abi.hpp shows.
//
//     fake_cuda_calls("cuMemMap")          how often it was called
//     fake_cuda_fail("cuMemMap", 2)        its next call returns 2 and does nothing
//     fake_cuda_set_attribute(134, 0, 3)   the answer to cuDeviceGetAttribute: status, value
//     fake_cuda_live("event")              what was made and not given back: pages, range, mapping, event, context,
//     copy
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

using DevicePointer = unsigned long long;
using Handle = unsigned long long;

struct Location {
  int type;
  int id;
};

struct AllocationProp {
  int type;
  int requested_handle_types;
  Location location;
  void* win32;
  unsigned char flags[8];
};

struct AccessDesc {
  Location location;
  int flags;
};

struct PagesRecord {
  Location location;
  std::size_t nbytes;
  int descriptor;
  int mappings = 0;
  bool released = false;
};

struct MappingRecord {
  std::size_t nbytes;
  Handle handle;
};

struct FakeEvent {
  void* context;
  bool recorded = false;
};

constexpr int kDevices = 2;
constexpr std::size_t kGranularity = 2 << 20;

std::recursive_mutex mutex;
bool initialised = false;
std::map<std::string, int> calls;
std::map<std::string, int> failures;
std::map<int, std::pair<int, int>> attributes = {{134, {0, 1}}, {141, {0, 1}}};
std::map<int, int> retained;
std::map<Handle, PagesRecord> pages;
std::map<DevicePointer, std::size_t> ranges;
std::map<DevicePointer, MappingRecord> mappings;
int live_events = 0;
int copies_under_way = 0;
Handle last_handle = 0x4000;
thread_local std::vector<void*> context_stack;

#define REQUIRE(condition)                                                      \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::fprintf(stderr, "fake libcuda, %s: not %s\n", __func__, #condition); \
      std::_Exit(3);                                                            \
    }                                                                           \
  } while (false)

#define BEGIN_CALL()                                       \
  const std::lock_guard<std::recursive_mutex> lock(mutex); \
  REQUIRE(initialised);                                    \
  if (const int failed = begin_call(__func__)) return failed

int begin_call(const char* function) {
  ++calls[function];
  const auto found = failures.find(function);
  if (found == failures.end()) return 0;
  const int status = found->second;
  failures.erase(found);
  return status;
}

void* context_of(int device) { return reinterpret_cast<void*>(0x1000 + static_cast<std::uintptr_t>(device)); }
void* current() { return context_stack.empty() ? nullptr : context_stack.back(); }

void drop_if_unused(Handle handle) {
  const PagesRecord& record = pages.at(handle);
  if (!record.released || record.mappings != 0) return;
  close(record.descriptor);
  pages.erase(handle);
}

}  // namespace

extern "C" {

int fake_cuda_calls(const char* function) { return calls[function]; }
void fake_cuda_fail(const char* function, int status) { failures[function] = status; }
void fake_cuda_set_attribute(int attribute, int status, int value) { attributes[attribute] = {status, value}; }

int fake_cuda_live(const char* what) {
  const std::string name = what;
  if (name == "pages") return static_cast<int>(pages.size());
  if (name == "range") return static_cast<int>(ranges.size());
  if (name == "mapping") return static_cast<int>(mappings.size());
  if (name == "event") return live_events;
  if (name == "context") return retained[0] + retained[1];
  return copies_under_way;
}

int cuInit(unsigned flags) {
  REQUIRE(flags == 0);
  initialised = true;
  return begin_call(__func__);
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cuDeviceGetCount(int* count) {
  BEGIN_CALL();
  *count = kDevices;
  return 0;
}

int cuDeviceGet(int* device, int ordinal) {
  BEGIN_CALL();
  if (ordinal < 0 || ordinal >= kDevices) return 101;
  *device = ordinal;
  return 0;
}

int cuDeviceGetName(char* text, int capacity, int device) {
  BEGIN_CALL();
  std::snprintf(text, static_cast<std::size_t>(capacity), "fake GPU %d", device);
  return 0;
}

int cuDeviceTotalMem_v2(std::size_t* nbytes, int device) {
  BEGIN_CALL();
  *nbytes = std::size_t{1} << (30 + device);
  return 0;
}

int cuDeviceCanAccessPeer(int* possible, int device, int peer) {
  BEGIN_CALL();
  *possible = device == 0 && peer == 1 ? 1 : 0;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  BEGIN_CALL();
  REQUIRE(device >= 0 && device < kDevices);
  const auto found = attributes.find(attribute);
  if (found == attributes.end()) return 1;
  if (found->second.first == 0) *value = found->second.second;
  return found->second.first;
}

int cuGetErrorName(int status, const char** name) {
  *name = status == 0 ? "CUDA_SUCCESS" : status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : nullptr;
  return *name == nullptr ? 1 : 0;
}

int cuDevicePrimaryCtxRetain(void** context, int device) {
  BEGIN_CALL();
  REQUIRE(device >= 0 && device < kDevices);
  ++retained[device];
  *context = context_of(device);
  return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
  BEGIN_CALL();
  REQUIRE(retained[device] > 0);
  --retained[device];
  return 0;
}

int cuCtxPushCurrent_v2(void* context) {
  BEGIN_CALL();
  REQUIRE(context == context_of(0) || context == context_of(1));
  context_stack.push_back(context);
  return 0;
}

int cuCtxPopCurrent_v2(void** context) {
  BEGIN_CALL();
  REQUIRE(!context_stack.empty());
  *context = current();
  context_stack.pop_back();
  return 0;
}

int cuCtxGetCurrent(void** context) {
  BEGIN_CALL();
  *context = current();
  return 0;
}

int cuCtxSynchronize() {
  BEGIN_CALL();
  REQUIRE(current() != nullptr);
  copies_under_way = 0;
  return 0;
}

int cuStreamSynchronize(void* stream) {
  BEGIN_CALL();
  REQUIRE(current() != nullptr && stream == nullptr);
  copies_under_way = 0;
  return 0;
}

int cuMemGetInfo_v2(std::size_t* free_nbytes, std::size_t* total_nbytes) {
  BEGIN_CALL();
  REQUIRE(current() != nullptr);
  *free_nbytes = current() == context_of(0) ? 1000 : 2000;
  *total_nbytes = 4000;
  return 0;
}

#ifndef WITHOUT_PAGES

int cuMemGetAllocationGranularity(std::size_t* nbytes, const AllocationProp* prop, int option) {
  BEGIN_CALL();
  REQUIRE(prop->type == 1 && option == 1);
  REQUIRE(prop->location.type == 1 || prop->location.type == 3);
  *nbytes = kGranularity;
  return 0;
}

int cuMemCreate(Handle* handle, std::size_t nbytes, const AllocationProp* prop, unsigned long long flags) {
  BEGIN_CALL();
  REQUIRE(flags == 0 && nbytes != 0 && nbytes % kGranularity == 0);
  REQUIRE(prop->type == 1 && prop->requested_handle_types == 0 && prop->win32 == nullptr);
  for (const unsigned char flag : prop->flags) REQUIRE(flag == 0);
  if (prop->location.type == 1) {
    REQUIRE(prop->location.id >= 0 && prop->location.id < kDevices);
    REQUIRE(current() == context_of(prop->location.id));
  } else {
    REQUIRE(prop->location.type == 3 && prop->location.id == attributes[134].second);
  }
  const int descriptor = memfd_create("fake GPU memory", 0);
  REQUIRE(descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(nbytes)) == 0);
  *handle = ++last_handle;
  pages[*handle] = {prop->location, nbytes, descriptor};
  return 0;
}

int cuMemRelease(Handle handle) {
  BEGIN_CALL();
  const auto found = pages.find(handle);
  if (found == pages.end() || found->second.released) return 1;
  found->second.released = true;
  drop_if_unused(handle);
  return 0;
}

int cuMemAddressReserve(DevicePointer* at, std::size_t nbytes, std::size_t alignment, DevicePointer wish,
                        unsigned long long flags) {
  BEGIN_CALL();
  REQUIRE(flags == 0 && wish == 0 && nbytes % kGranularity == 0);
  REQUIRE((alignment & (alignment - 1)) == 0);
  void* memory = mmap(nullptr, nbytes + kGranularity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  *at = (reinterpret_cast<DevicePointer>(memory) + kGranularity - 1) / kGranularity * kGranularity;
  ranges[*at] = nbytes;
  return 0;
}

int cuMemAddressFree(DevicePointer at, std::size_t nbytes) {
  BEGIN_CALL();
  const auto found = ranges.find(at);
  if (found == ranges.end() || found->second != nbytes) return 1;
  const auto mapping = mappings.lower_bound(at);
  if (mapping != mappings.end() && mapping->first < at + nbytes) return 1;
  munmap(reinterpret_cast<void*>(at), nbytes);
  ranges.erase(found);
  return 0;
}

int cuMemMap(DevicePointer at, std::size_t nbytes, std::size_t offset, Handle handle, unsigned long long flags) {
  BEGIN_CALL();
  REQUIRE(offset == 0 && flags == 0);
  const auto found = pages.find(handle);
  if (found == pages.end() || found->second.released || found->second.nbytes != nbytes) return 1;
  if (!mappings.insert({at, {nbytes, handle}}).second) return 1;
  void* const place = reinterpret_cast<void*>(at);
  REQUIRE(mmap(place, nbytes, PROT_NONE, MAP_SHARED | MAP_FIXED, found->second.descriptor, 0) == place);
  ++found->second.mappings;
  return 0;
}

int cuMemUnmap(DevicePointer at, std::size_t nbytes) {
  BEGIN_CALL();
  const auto found = mappings.find(at);
  if (found == mappings.end() || found->second.nbytes != nbytes) return 1;
  const Handle handle = found->second.handle;
  void* const place = reinterpret_cast<void*>(at);
  REQUIRE(mmap(place, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place);
  mappings.erase(found);
  --pages.at(handle).mappings;
  drop_if_unused(handle);
  return 0;
}

int cuMemSetAccess(DevicePointer at, std::size_t nbytes, const AccessDesc* descs, std::size_t count) {
  BEGIN_CALL();
  REQUIRE(count >= 1 && count <= kDevices);
  for (std::size_t i = 0; i < count; ++i) {
    REQUIRE(descs[i].flags == 3);
    REQUIRE(descs[i].location.type == 1 || descs[i].location.type == 3);
  }
  for (DevicePointer next = at; next < at + nbytes;) {
    const auto mapping = mappings.find(next);
    if (mapping == mappings.end()) return 1;
    for (std::size_t i = 0; i < count; ++i) {
      if (descs[i].location.type == 3 && pages.at(mapping->second.handle).location.type != 3) return 1;
      if (descs[i].location.type == 1 && (descs[i].location.id < 0 || descs[i].location.id >= kDevices)) return 101;
    }
    next += mapping->second.nbytes;
  }
  REQUIRE(mprotect(reinterpret_cast<void*>(at), nbytes, PROT_READ | PROT_WRITE) == 0);
  return 0;
}

#endif

int cuEventCreate(void** event, unsigned flags) {
  BEGIN_CALL();
  REQUIRE(flags == 2 && current() != nullptr);
  *event = new FakeEvent{current()};
  ++live_events;
  return 0;
}

int cuEventRecord(void* event, void* stream) {
  BEGIN_CALL();
  REQUIRE(current() == static_cast<FakeEvent*>(event)->context);
  REQUIRE(stream == nullptr || stream == reinterpret_cast<void*>(0x77));
  static_cast<FakeEvent*>(event)->recorded = true;
  return 0;
}

int cuEventQuery(void* event) {
  BEGIN_CALL();
  REQUIRE(current() == static_cast<FakeEvent*>(event)->context && static_cast<FakeEvent*>(event)->recorded);
  return 0;
}

int cuEventDestroy_v2(void* event) {
  BEGIN_CALL();
  REQUIRE(current() == static_cast<FakeEvent*>(event)->context);
  delete static_cast<FakeEvent*>(event);
  --live_events;
  return 0;
}

int cuMemcpy(DevicePointer target, DevicePointer source, std::size_t nbytes) {
  BEGIN_CALL();
  REQUIRE(current() != nullptr);
  std::memmove(reinterpret_cast<void*>(target), reinterpret_cast<const void*>(source), nbytes);
  ++copies_under_way;
  return 0;
}

}  // extern "C"
