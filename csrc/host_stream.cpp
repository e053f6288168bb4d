#include "host_stream.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

namespace poolrt::host_driver {

bool HostStream::held() const {
  return std::any_of(work_.begin(), work_.end(), [](const Work& work) { return work.kind == Work::Kind::kGate; });
}

void HostStream::hold(Moment now) {
  if (!held()) put({Work::Kind::kGate, now});
}

void HostStream::let_go() {
  const auto gate = std::find_if(work_.begin(), work_.end(), [](const Work& w) { return w.kind == Work::Kind::kGate; });
  if (gate == work_.end()) return;
  const Moment now = Clock::now();
  for (auto work = work_.erase(gate); work != work_.end(); ++work) work->queued_at = now;
}

Next HostStream::advance(const StreamPointer& self) {
  Next next;
  while (!work_.empty() && !copying_) {
    Work& work = work_.front();
    switch (work.kind) {
      case Work::Kind::kGate:
        return next;
      case Work::Kind::kCopy:
        copying_ = next.has_copy = true;
        next.copy = work.copy;
        next.ready = std::max(reached_, work.queued_at);
        return next;
      case Work::Kind::kWait:
        if (waits(self, work)) return next;
        break;
      case Work::Kind::kRecord:
        pass(*work.event, work.queued_at, next);
        break;
    }
    work_.pop_front();
  }
  return next;
}

void HostStream::expect(Moment arrival) {
  for (auto work = std::next(work_.begin()); work != work_.end() && work->kind != Work::Kind::kCopy; ++work) {
    if (work->kind == Work::Kind::kRecord) work->event->expected = arrival;
  }
}

bool HostStream::waits(const StreamPointer& self, Work& work) {
  HostEvent& event = *work.event;
  if (!event.passed) {
    const auto known = std::find(event.waiting.begin(), event.waiting.end(), self);
    if (known == event.waiting.end()) event.waiting.push_back(self);
    return true;
  }
  reached_ = std::max({reached_, event.passed_at, work.queued_at});
  learn_of(event.failure);
  return false;
}

void HostStream::pass(HostEvent& event, Moment queued_at, Next& next) {
  reached_ = std::max(reached_, queued_at);
  event.passed = true;
  event.passed_at = reached_;
  event.failure = failure();
  next.streams.insert(next.streams.end(), event.waiting.begin(), event.waiting.end());
  event.waiting.clear();
}

void HostStream::copied(Moment at, const FailurePointer& failure) {
  copying_ = false;
  reached_ = at;
  learn_of(failure);
  work_.pop_front();
}

// The first failure is the one that is told.
void HostStream::learn_of(const FailurePointer& failure) {
  if (failure && !failure->told && !this->failure()) failure_ = failure;
}

const FailurePointer& HostStream::failure() {
  if (failure_ && failure_->told) failure_.reset();
  return failure_;
}

}  // namespace poolrt::host_driver
