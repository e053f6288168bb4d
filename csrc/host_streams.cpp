#include "host_streams.hpp"

#include <array>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "host_carrier.hpp"
#include "host_handles.hpp"
#include "host_links.hpp"
#include "host_machine.hpp"
#include "host_stream.hpp"

namespace poolrt::host_driver {
namespace {

int told(const FailurePointer& failure, CopyFailure* report) {
  if (!failure) return kSuccess;
  failure->told = true;
  *report = failure->what;
  return kLinkFailed;
}

class HostStreams {
 public:
  HostStreams() {
    for (int card = 0; card < kMaxCards; ++card) default_[card] = add(card);
  }

  int create(int card, Stream* stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    *stream = add(card);
    return kSuccess;
  }

  int destroy(Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const StreamPointer state = streams_.find(stream);
    if (!state) return kInvalidHandle;
    if (!state->empty() || is_default(*state, stream)) return kInvalidValue;
    streams_.erase(stream);
    return kSuccess;
  }

  int hold(Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const StreamPointer state = streams_.find(stream);
    if (!state) return kInvalidHandle;
    state->hold(Clock::now());
    return kSuccess;
  }

  int pass(Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const StreamPointer state = streams_.find(stream);
    if (!state) return kInvalidHandle;
    state->let_go();
    return go_on({state});
  }

  // An idle stream's copy over a link that takes no time is made here and now, with no thread and no queue.
  int copy(int card, Stream stream, const StreamCopy* asked) {
    std::unique_lock<std::mutex> lock(mutex_);
    const StreamPointer state = find(card, stream);
    if (!state) return kInvalidHandle;
    if (is_default(*state, stream)) return kInvalidValue;
    const StreamCopy copy = *asked;
    HostLink* link = links().between(copy.source, copy.target);
    const bool at_once = state->empty() && (link == nullptr || !link->modelled());
    state->put({Work::Kind::kCopy, Clock::now(), nullptr, copy});
    if (!at_once) return go_on({state});
    const Next next = state->advance(state);
    lock.unlock();
    const Passage passage = take(copy, next.ready);
    if (!passage.fails) move_bytes(copy, 0, copy.nbytes, passage.wrong_byte);
    arrived(state, copy, passage);
    return kSuccess;
  }

  int wait(int card, Stream stream, Event event, CopyFailure* failure) {
    std::unique_lock<std::mutex> lock(mutex_);
    const StreamPointer state = find(card, stream);
    const EventPointer awaited = events_.find(event);
    if (!state || !awaited) return kInvalidHandle;
    if (is_default(*state, stream)) return wait_for(lock, *awaited, failure);
    state->put({Work::Kind::kWait, Clock::now(), awaited});
    return go_on({state});
  }

  int record(int card, Stream stream, Event* event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const StreamPointer state = find(card, stream);
    if (!state) return kInvalidHandle;
    const auto made = std::make_shared<HostEvent>();
    *event = events_.add(made);
    state->put({Work::Kind::kRecord, Clock::now(), made});
    return go_on({state});
  }

  int passed(Event event, int* passed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const EventPointer asked = events_.find(event);
    if (!asked) return kInvalidHandle;
    *passed = asked->passed ? 1 : 0;
    return kSuccess;
  }

  int finish_event(Event event, CopyFailure* failure) {
    std::unique_lock<std::mutex> lock(mutex_);
    const EventPointer awaited = events_.find(event);
    return awaited ? wait_for(lock, *awaited, failure) : kInvalidHandle;
  }

  int time(Event event, std::int64_t* passed_ns) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const EventPointer asked = events_.find(event);
    if (!asked) return kInvalidHandle;
    if (!asked->passed) return kNotFound;
    *passed_ns = std::chrono::nanoseconds(asked->passed_at.time_since_epoch()).count();
    return kSuccess;
  }

  int forget(Event event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return events_.erase(event) ? kSuccess : kInvalidHandle;
  }

  int is_empty(int card, Stream stream, int* empty) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const StreamPointer state = find(card, stream);
    if (!state) return kInvalidHandle;
    *empty = state->empty() ? 1 : 0;
    return kSuccess;
  }

  int finish(int card, Stream stream, CopyFailure* failure) {
    std::unique_lock<std::mutex> lock(mutex_);
    const StreamPointer state = find(card, stream);
    if (!state) return kInvalidHandle;
    changed_.wait(lock, [&] { return state->empty(); });
    return told(state->failure(), failure);
  }

  int drain(int card) {
    std::unique_lock<std::mutex> lock(mutex_);
    wait_for_card(lock, card);
    return kSuccess;
  }

  // The first failure found; the next call tells the next one.
  int finish_card(int card, CopyFailure* failure) {
    std::unique_lock<std::mutex> lock(mutex_);
    wait_for_card(lock, card);
    for (const auto& [handle, stream] : streams_) {
      if (stream->card() == card && told(stream->failure(), failure) != kSuccess) return kLinkFailed;
    }
    return kSuccess;
  }

  void forget_failures() {
    const std::lock_guard<std::mutex> lock(mutex_);
    CopyFailure untold{};
    for (const auto& [handle, stream] : streams_) told(stream->failure(), &untold);
  }

  int default_of(int card, Stream* stream) {
    *stream = default_[card];
    return kSuccess;
  }

  void count(PageState* state) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state->event_count = events_.size();
    state->stream_count = streams_.size() - default_.size();
  }

 private:
  Stream add(int card) { return streams_.add(std::make_shared<HostStream>(card)); }

  StreamPointer find(int card, Stream stream) {
    const StreamPointer found = streams_.find(stream == nullptr ? default_[card] : stream);
    return found && found->card() == card ? found : nullptr;
  }

  bool is_default(const HostStream& state, Stream stream) const {
    return stream == nullptr || stream == default_[state.card()];
  }

  static Passage take(const StreamCopy& copy, Moment ready) {
    HostLink* link = links().between(copy.source, copy.target);
    return link == nullptr ? Passage{} : link->take(copy.nbytes, ready);
  }

  // Lets streams go on as far as they can, and those that waited for them, first come, first served; with the lock
  // held.
  int go_on(std::vector<StreamPointer> streams) {
    int status = kSuccess;
    for (std::size_t i = 0; i < streams.size(); ++i) {
      const StreamPointer stream = streams[i];
      Next next = stream->advance(stream);
      streams.insert(streams.end(), next.streams.begin(), next.streams.end());
      if (next.has_copy) {
        const Passage passage = take(next.copy, next.ready);
        if (passage.modelled) stream->expect(passage.arrival);
        const auto arrive = [this, stream, copy = next.copy, passage] { arrived(stream, copy, passage); };
        status = carrier().carry(Carriage(next.copy, passage, arrive));
        if (status != kSuccess) stream->postpone();
      }
    }
    changed_.notify_all();
    return status;
  }

  // Without the lock: `done` is anybody's code.
  void arrived(const StreamPointer& stream, const StreamCopy& copy, const Passage& passage) {
    if (copy.done != nullptr) copy.done(copy.context);
    const std::lock_guard<std::mutex> lock(mutex_);
    FailurePointer failure;
    if (passage.fails) {
      failure = std::make_shared<FailedCopy>(FailedCopy{{copy.source, copy.target, copy.nbytes}});
    }
    stream->copied(passage.modelled ? passage.arrival : Clock::now(), failure);
    go_on({stream});
  }

  int wait_for(std::unique_lock<std::mutex>& lock, HostEvent& event, CopyFailure* failure) {
    while (!event.passed) wait_a_little(lock, event);
    return told(event.failure, failure);
  }

  // Awake shortly before and after the event is expected, asleep else. Events change meanwhile.
  void wait_a_little(std::unique_lock<std::mutex>& lock, const HostEvent& event) {
    const Moment now = Clock::now();
    if (event.expected == Moment{} || now > event.expected + kWakeUp) {
      changed_.wait(lock);
    } else if (now < event.expected - kWakeUp) {
      changed_.wait_until(lock, event.expected - kWakeUp);
    } else {
      lock.unlock();
      std::this_thread::yield();
      lock.lock();
    }
  }

  void wait_for_card(std::unique_lock<std::mutex>& lock, int card) {
    changed_.wait(lock, [&] {
      for (const auto& [handle, stream] : streams_) {
        if (stream->card() == card && !stream->empty()) return false;
      }
      return true;
    });
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  Handles<HostStream> streams_;
  Handles<HostEvent> events_;
  std::array<Stream, kMaxCards> default_{};
};

HostStreams& streams() {
  static auto* instance = new HostStreams;
  return *instance;
}

template <typename Method, typename... Arguments>
int with(int card, Method method, Arguments... arguments) {
  return machine().has(card) ? (streams().*method)(card, arguments...) : kInvalidDevice;
}

}  // namespace

int stream_create(int card, Stream* stream) { return with(card, &HostStreams::create, stream); }
int stream_destroy(Stream stream) { return streams().destroy(stream); }
int stream_hold(Stream stream) { return streams().hold(stream); }
int stream_pass(Stream stream) { return streams().pass(stream); }
int default_stream(int card, Stream* stream) { return with(card, &HostStreams::default_of, stream); }

int stream_copy(int card, Stream stream, const StreamCopy* copy) {
  if (!machine().is_place(copy->source) || !machine().is_place(copy->target)) return kInvalidDevice;
  return with(card, &HostStreams::copy, stream, copy);
}

int stream_wait(int card, Stream stream, Event event, CopyFailure* failure) {
  return with(card, &HostStreams::wait, stream, event, failure);
}

int stream_empty(int card, Stream stream, int* empty) { return with(card, &HostStreams::is_empty, stream, empty); }

int stream_finish(int card, Stream stream, CopyFailure* failure) {
  return with(card, &HostStreams::finish, stream, failure);
}

int card_finish(int card, CopyFailure* failure) { return with(card, &HostStreams::finish_card, failure); }
int event_record(int card, Stream stream, Event* event) { return with(card, &HostStreams::record, stream, event); }
int event_passed(Event event, int* passed) { return streams().passed(event, passed); }
int event_finish(Event event, CopyFailure* failure) { return streams().finish_event(event, failure); }
int event_time(Event event, std::int64_t* passed_ns) { return streams().time(event, passed_ns); }
int event_destroy(Event event) { return streams().forget(event); }
int drain(int card) { return with(card, &HostStreams::drain); }

void forget_failures() { streams().forget_failures(); }
void count_streams(PageState* state) { streams().count(state); }

}  // namespace poolrt::host_driver
