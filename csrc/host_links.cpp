#include "host_links.hpp"

#include <algorithm>
#include <cmath>
#include <thread>

#include "host_machine.hpp"

namespace poolrt::host_driver {
namespace {

// A hundred years at most: no moment overflows.
Clock::duration seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(s, 3e9)));
}

}  // namespace

void HostLink::set_model(const LinkModel& model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  model_ = model;
  free_from_ = {};
  modelled_.store(model.bytes_per_s > 0, std::memory_order_relaxed);
}

void HostLink::set_fault(const LinkFault& fault) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fault_ = fault;
  dead_ = fault.kind == kLinkDies && fault.after_copies == 0;
  faulty_.store(fault.kind != kLinkSound, std::memory_order_relaxed);
}

void HostLink::reset() {
  set_model({});
  set_fault({});
  copies_.store(0, std::memory_order_relaxed);
  nbytes_.store(0, std::memory_order_relaxed);
}

LinkState HostLink::state() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {copies_.load(std::memory_order_relaxed), nbytes_.load(std::memory_order_relaxed), dead_ ? 0 : 1};
}

void HostLink::count(std::size_t nbytes) {
  copies_.fetch_add(1, std::memory_order_relaxed);
  nbytes_.fetch_add(nbytes, std::memory_order_relaxed);
}

bool HostLink::survives(std::size_t nbytes) {
  if (fault_.kind != kLinkDies) return true;
  dead_ = dead_ || nbytes > fault_.after_nbytes;
  if (dead_) return false;
  if (fault_.after_nbytes != kNoLimit) fault_.after_nbytes -= nbytes;
  if (fault_.after_copies != kNoLimit) dead_ = --fault_.after_copies == 0;
  return true;
}

std::size_t HostLink::wrong_byte_of(std::size_t nbytes) const {
  if (fault_.kind != kLinkLies || nbytes < fault_.at_least_nbytes) return kNoByte;
  const std::size_t byte = fault_.at_byte == kMiddleByte ? nbytes / 2 : fault_.at_byte;
  return byte < nbytes ? byte : kNoByte;
}

Passage HostLink::take(std::size_t nbytes, Moment ready) {
  Passage passage;
  if (!modelled() && !faulty_.load(std::memory_order_relaxed)) {
    count(nbytes);
    return passage;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  passage.fails = !survives(nbytes);
  if (passage.fails) return passage;
  count(nbytes);
  passage.wrong_byte = wrong_byte_of(nbytes);
  passage.modelled = model_.bytes_per_s > 0;
  if (passage.modelled) {
    passage.first_byte = std::max(ready, free_from_) + seconds(model_.latency_s);
    passage.arrival = passage.first_byte + seconds(static_cast<double>(nbytes) / model_.bytes_per_s);
    free_from_ = passage.arrival;
  }
  return passage;
}

void HostLinks::reset() {
  for (auto& from_one_place : links_) {
    for (HostLink& link : from_one_place) link.reset();
  }
}

// Never destroyed, like the machine.
HostLinks& links() {
  static auto* instance = new HostLinks;
  return *instance;
}

namespace {

// Null, unless both are places that a link joins.
HostLink* link_between(int source, int target) {
  return machine().is_place(source) && machine().is_place(target) ? links().between(source, target) : nullptr;
}

}  // namespace

int link_set_model(int source, int target, const LinkModel* model) {
  HostLink* link = link_between(source, target);
  if (link == nullptr) return kInvalidDevice;
  const bool possible = std::isfinite(model->bytes_per_s) && model->bytes_per_s >= 0 &&
                        std::isfinite(model->latency_s) && model->latency_s >= 0;
  if (!possible) return kInvalidValue;
  link->set_model(*model);
  return kSuccess;
}

int link_set_fault(int source, int target, const LinkFault* fault) {
  HostLink* link = link_between(source, target);
  if (link == nullptr) return kInvalidDevice;
  if (fault->kind < kLinkSound || fault->kind > kLinkDies) return kInvalidValue;
  link->set_fault(*fault);
  return kSuccess;
}

int link_state(int source, int target, LinkState* state) {
  HostLink* link = link_between(source, target);
  if (link == nullptr) return kInvalidDevice;
  *state = link->state();
  return kSuccess;
}

int link_begin(int source, int target, std::size_t nbytes, LinkPassage* passage) {
  *passage = {0, kNoByte};
  if (!machine().is_place(source) || !machine().is_place(target)) return kInvalidDevice;
  HostLink* link = links().between(source, target);
  if (link == nullptr) return kSuccess;
  const Passage taken = link->take(nbytes, link->modelled() ? Clock::now() : Moment{});
  if (taken.fails) return kLinkFailed;
  if (taken.modelled) passage->arrival_ns = std::chrono::nanoseconds(taken.arrival.time_since_epoch()).count();
  passage->wrong_byte = taken.wrong_byte;
  return kSuccess;
}

int link_end(const LinkPassage* passage) {
  if (passage->arrival_ns != 0) std::this_thread::sleep_until(Moment(std::chrono::nanoseconds(passage->arrival_ns)));
  return kSuccess;
}

}  // namespace poolrt::host_driver
