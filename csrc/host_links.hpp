// Directed links of the HOST driver's machine: how long a copy takes, what is wrong with a link, what it has carried.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "driver.hpp"

namespace poolrt::host_driver {

// It may take so long until a thread that slept runs: who must not be late wakes up before, and waits the rest awake.
constexpr auto kWakeUp = std::chrono::microseconds(200);

using Clock = std::chrono::steady_clock;
using Moment = Clock::time_point;

// What a link makes of one copy. Moments are the model's, not those at which a thread happened to wake up: the copy
// after this one begins at `arrival`, however late that is noticed, so delays do not add up.
struct Passage {
  bool fails = false;
  bool modelled = false;
  Moment first_byte{};  // after the latency
  Moment arrival{};
  std::size_t wrong_byte = kNoByte;
};

class HostLink {
 public:
  void set_model(const LinkModel& model);
  void set_fault(const LinkFault& fault);
  void reset();  // no model, no fault, nothing carried
  LinkState state();

  bool modelled() const { return modelled_.load(std::memory_order_relaxed); }

  // Takes the copy's turn, at `ready` or when the copy before it has arrived.
  Passage take(std::size_t nbytes, Moment ready);

 private:
  bool survives(std::size_t nbytes);
  std::size_t wrong_byte_of(std::size_t nbytes) const;
  void count(std::size_t nbytes);

  std::atomic<bool> modelled_{false};
  std::atomic<bool> faulty_{false};
  std::atomic<std::uint64_t> copies_{0};
  std::atomic<std::uint64_t> nbytes_{0};
  std::mutex mutex_;
  LinkModel model_{};
  LinkFault fault_{};
  bool dead_ = false;
  Moment free_from_{};
};

class HostLinks {
 public:
  // Null where no link leads: within one place.
  HostLink* between(int source, int target) {
    return source == target ? nullptr : &links_[source + 1][target + 1];  // the host's come first
  }
  void reset();

 private:
  std::array<std::array<HostLink, kMaxCards + 1>, kMaxCards + 1> links_;
};

HostLinks& links();

int link_set_model(int source, int target, const LinkModel* model);
int link_set_fault(int source, int target, const LinkFault* fault);
int link_state(int source, int target, LinkState* state);
int link_begin(int source, int target, std::size_t nbytes, LinkPassage* passage);
int link_end(const LinkPassage* passage);

}  // namespace poolrt::host_driver
