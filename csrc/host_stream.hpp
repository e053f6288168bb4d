// One stream of the HOST driver as its queue of work, and the events that come out of it. Every function here is called
// with the lock of all streams held; none waits, and none calls anybody else's code.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "driver.hpp"
#include "host_links.hpp"

namespace poolrt::host_driver {

class HostStream;
using StreamPointer = std::shared_ptr<HostStream>;

// A copy that did not arrive. Streams and events point at it; who hears of it first has it told.
struct FailedCopy {
  CopyFailure what;
  bool told = false;
};
using FailurePointer = std::shared_ptr<FailedCopy>;

struct HostEvent {
  bool passed = false;
  Moment passed_at{};
  Moment expected{};                   // passes no earlier; known once the copy before it is on its way
  FailurePointer failure;              // stays: who waits for this event is never told that all was well
  std::vector<StreamPointer> waiting;  // streams that have come to a wait for it
};
using EventPointer = std::shared_ptr<HostEvent>;

struct Work {
  enum class Kind { kCopy, kRecord, kWait, kGate };  // a gate holds the stream
  Kind kind;
  Moment queued_at;
  EventPointer event{};
  StreamCopy copy{};
};

// What a stream that was let on has to have done by others: a copy to be made, or streams that may go on too.
struct Next {
  bool has_copy = false;
  StreamCopy copy{};
  Moment ready{};
  std::vector<StreamPointer> streams{};
};

class HostStream {
 public:
  explicit HostStream(int card) : card_(card) {}

  int card() const { return card_; }
  bool empty() const { return work_.empty(); }
  bool held() const;
  void hold(Moment now);
  void let_go();

  void put(Work work) { work_.push_back(std::move(work)); }

  // Goes on with the work in front as far as it can. A copy stays in front until `copied`; so does a wait until its
  // event has passed.
  Next advance(const StreamPointer& self);
  void copied(Moment at, const FailurePointer& failure);
  void expect(Moment arrival);           // of the copy in front
  void postpone() { copying_ = false; }  // nobody could make the copy: it is tried again with the next work

  const FailurePointer& failure();  // null once it was told

 private:
  bool waits(const StreamPointer& self, Work& work);
  void pass(HostEvent& event, Moment queued_at, Next& next);
  void learn_of(const FailurePointer& failure);

  int card_;
  bool copying_ = false;
  std::deque<Work> work_;
  Moment reached_{};  // when the last work was done, by the links' models
  FailurePointer failure_;
};

}  // namespace poolrt::host_driver
