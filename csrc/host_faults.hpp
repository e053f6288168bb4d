// Counts the driver's calls, and makes those fail or return late that a test has chosen.
#pragma once

#include <cstdint>

#include "driver.hpp"
#include "guarded.hpp"

namespace poolrt::host_driver {

int count_calls(std::uint64_t* count);
int set_fault(const Fault* fault);
int clear_fault();

// One call, from its count to its return. Being late comes last, with no lock held: what was asked has been done by
// then, as on a machine where only the answer takes long.
class DriverCall {
 public:
  DriverCall();
  DriverCall(const DriverCall&) = delete;
  DriverCall& operator=(const DriverCall&) = delete;
  ~DriverCall();

  int status() const { return status_; }

 private:
  int status_ = kSuccess;
  std::uint32_t delay_us_ = 0;
};

// The function, as it stands in the table: a counted call, unless a fault stands in its place.
template <auto function, typename... Arguments>
int counted(Arguments... arguments) noexcept {
  const DriverCall call;
  return call.status() != kSuccess ? call.status() : guarded<function>(arguments...);
}

}  // namespace poolrt::host_driver
