// The CUDA filling of the driver table.
//
//     cuda_library    libcuda.so.1 and its functions       cuda_pages     pages, ranges, mappings, access
//     cuda_abi        the types and numbers they take      cuda_events    events, waiting for a card
//     cuda_context    the contexts they work in
#include "cuda_abi.hpp"
#include "cuda_context.hpp"
#include "cuda_events.hpp"
#include "cuda_library.hpp"
#include "cuda_pages.hpp"
#include "driver.hpp"
#include "guarded.hpp"

namespace poolrt {
namespace {

using cuda_driver::cuda;

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

// cuMemGetInfo answers for the current context only. The context is not kept: to ask a card how full it is should not
// cost the memory of a context there for good.
int memory_info(int card, std::size_t* free_nbytes, std::size_t* total_nbytes) {
  int device = 0;
  if (const int status = cuda().device(&device, card)) return status;
  cuda_driver::Context context = nullptr;
  if (const int status = cuda().context_retain(&context, device)) return status;
  const int status = cuda_driver::in_context(context, [&] { return cuda().memory_info(free_nbytes, total_nbytes); });
  cuda().context_release(device);
  return status;
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
    "CUDA",
    init,
    driver_version,
    device_count,
    device_name,
    total_memory,
    memory_info,
    can_access_peer,
    status_name,
    guarded<cuda_driver::granularity>,
    guarded<cuda_driver::pages_create>,
    guarded<cuda_driver::pages_release>,
    guarded<cuda_driver::range_reserve>,
    guarded<cuda_driver::range_free>,
    guarded<cuda_driver::map>,
    guarded<cuda_driver::unmap>,
    guarded<cuda_driver::set_access>,
    guarded<cuda_driver::event_record>,
    guarded<cuda_driver::event_passed>,
    guarded<cuda_driver::event_destroy>,
    guarded<cuda_driver::drain>,
    guarded<cuda_driver::copy>,
};

}  // namespace

const DriverTable* cuda_driver_table(const char** why) {
  *why = cuda().library.why().c_str();
  return cuda().library.why().empty() ? &kTable : nullptr;
}

}  // namespace poolrt
