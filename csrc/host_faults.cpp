#include "host_faults.hpp"

#include <chrono>
#include <mutex>
#include <thread>

namespace poolrt::host_driver {
namespace {

struct FaultPlan {
  std::mutex mutex;
  std::uint64_t calls = 0;
  std::uint64_t calls_before = 0;  // made when the fault was set
  Fault fault{};                   // at_call 0: none
};

FaultPlan& plan() {
  static auto* instance = new FaultPlan;
  return *instance;
}

}  // namespace

DriverCall::DriverCall() {
  const std::lock_guard<std::mutex> lock(plan().mutex);
  const std::uint64_t number = ++plan().calls - plan().calls_before;
  const Fault& fault = plan().fault;
  if (fault.at_call == 0 || number < fault.at_call || number - fault.at_call >= fault.count) return;
  status_ = fault.status;
  delay_us_ = fault.delay_us;
}

DriverCall::~DriverCall() {
  if (delay_us_ != 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us_));
}

int count_calls(std::uint64_t* count) {
  const std::lock_guard<std::mutex> lock(plan().mutex);
  *count = plan().calls;
  return kSuccess;
}

int set_fault(const Fault* fault) {
  if (fault->at_call == 0 || fault->count == 0) return kInvalidValue;
  const std::lock_guard<std::mutex> lock(plan().mutex);
  plan().fault = *fault;
  plan().calls_before = plan().calls;
  return kSuccess;
}

int clear_fault() {
  const std::lock_guard<std::mutex> lock(plan().mutex);
  plan().fault = Fault{};
  return kSuccess;
}

}  // namespace poolrt::host_driver
