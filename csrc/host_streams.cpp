#include "host_streams.hpp"

#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "host_machine.hpp"

namespace poolrt::host_driver {
namespace {

struct HostStream {
  int card;
  std::uint64_t position = 0;
  std::uint64_t held_from = 0;  // 0: not held

  bool held() const { return held_from != 0; }
};

// Keeps its stream: it may outlive the stream's handle.
struct HostEvent {
  std::shared_ptr<const HostStream> stream;
  std::uint64_t position;

  bool passed() const { return !stream->held() || position < stream->held_from; }
};

class HostStreams {
 public:
  HostStreams() {
    for (int card = 0; card < kMaxCards; ++card) default_[card] = add(card);
  }

  Stream create(int card) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return add(card);
  }

  int destroy(Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return kInvalidHandle;
    if (found->second->held() || stream == default_[found->second->card]) return kInvalidValue;
    streams_.erase(found);
    return kSuccess;
  }

  int hold(Stream stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(stream);
    if (found == streams_.end()) return kInvalidHandle;
    HostStream& state = *found->second;
    if (!state.held()) state.held_from = ++state.position;
    return kSuccess;
  }

  int pass(Stream stream) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = streams_.find(stream);
      if (found == streams_.end()) return kInvalidHandle;
      found->second->held_from = 0;
    }
    passed_.notify_all();
    return kSuccess;
  }

  int record(int card, Stream stream, Event* event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(stream == nullptr ? default_[card] : stream);
    if (found == streams_.end() || found->second->card != card) return kInvalidHandle;
    const std::shared_ptr<HostStream>& state = found->second;
    const Event made = new_handle();
    events_.emplace(made, HostEvent{state, ++state->position});
    *event = made;
    return kSuccess;
  }

  int passed(Event event, int* passed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = events_.find(event);
    if (found == events_.end()) return kInvalidHandle;
    *passed = found->second.passed() ? 1 : 0;
    return kSuccess;
  }

  int forget(Event event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return events_.erase(event) == 1 ? kSuccess : kInvalidHandle;
  }

  void drain(int card) {
    std::unique_lock<std::mutex> lock(mutex_);
    passed_.wait(lock, [&] {
      for (const auto& [handle, stream] : streams_) {
        if (stream->card == card && stream->held()) return false;
      }
      return true;
    });
  }

  Stream default_of(int card) const { return default_[card]; }

  void count(PageState* state) {
    const std::lock_guard<std::mutex> lock(mutex_);
    state->event_count = events_.size();
    state->stream_count = streams_.size() - default_.size();
  }

 private:
  Stream add(int card) {
    const Stream made = new_handle();
    streams_.emplace(made, std::make_shared<HostStream>(HostStream{card}));
    return made;
  }

  // A number, never used twice: a handle that was destroyed is recognised for ever.
  void* new_handle() { return reinterpret_cast<void*>(++last_handle_); }

  std::mutex mutex_;
  std::condition_variable passed_;
  std::uintptr_t last_handle_ = 0;
  std::unordered_map<Stream, std::shared_ptr<HostStream>> streams_;
  std::unordered_map<Event, HostEvent> events_;
  std::array<Stream, kMaxCards> default_{};
};

HostStreams& streams() {
  static auto* instance = new HostStreams;
  return *instance;
}

}  // namespace

int stream_create(int card, Stream* stream) {
  if (!machine().has(card)) return kInvalidDevice;
  *stream = streams().create(card);
  return kSuccess;
}

int stream_destroy(Stream stream) { return streams().destroy(stream); }
int stream_hold(Stream stream) { return streams().hold(stream); }
int stream_pass(Stream stream) { return streams().pass(stream); }

int default_stream(int card, Stream* stream) {
  if (!machine().has(card)) return kInvalidDevice;
  *stream = streams().default_of(card);
  return kSuccess;
}

int event_record(int card, Stream stream, Event* event) {
  return machine().has(card) ? streams().record(card, stream, event) : kInvalidDevice;
}

int event_passed(Event event, int* passed) { return streams().passed(event, passed); }
int event_destroy(Event event) { return streams().forget(event); }

int drain(int card) {
  if (!machine().has(card)) return kInvalidDevice;
  streams().drain(card);
  return kSuccess;
}

void count_streams(PageState* state) { streams().count(state); }

}  // namespace poolrt::host_driver
