#include "vcard_streams.hpp"

#include <c10/util/Exception.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

// Python's own, where this process is Python; this library is not linked against it.
extern "C" {
__attribute__((weak)) int PyGILState_Check();
__attribute__((weak)) void* PyEval_SaveThread();
__attribute__((weak)) void PyEval_RestoreThread(void* state);
}

namespace poolrt::vcard {
namespace {

// torch lets go of the interpreter's lock in some of its functions that may wait, but not in Stream.wait_event.
class WithoutInterpreterLock {
 public:
  WithoutInterpreterLock() {
    if (PyGILState_Check != nullptr && PyGILState_Check() != 0) state_ = PyEval_SaveThread();
  }
  WithoutInterpreterLock(const WithoutInterpreterLock&) = delete;
  WithoutInterpreterLock& operator=(const WithoutInterpreterLock&) = delete;
  ~WithoutInterpreterLock() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }

 private:
  void* state_ = nullptr;
};

thread_local std::array<c10::StreamId, kMaxCards> current_ids{};

c10::Stream stream_of(int card, c10::StreamId id) { return c10::Stream(c10::Stream::UNSAFE, device_of(card), id); }

class SideStreams {
 public:
  c10::StreamId next(int card) {
    const std::lock_guard<std::mutex> lock(mutex_);
    c10::StreamId& id = ids_[card][turn_[card]++ % kPerCard];
    if (id == 0) {
      Stream made = nullptr;
      TORCH_CHECK(host().stream_create(card, &made) == kSuccess, "vcard:", card, ": no stream could be made");
      id = reinterpret_cast<std::intptr_t>(made);
    }
    return id;
  }

 private:
  static constexpr std::size_t kPerCard = 32;  // as many as torch.cuda has

  std::mutex mutex_;
  std::array<std::array<c10::StreamId, kPerCard>, kMaxCards> ids_{};
  std::array<std::size_t, kMaxCards> turn_{};
};

void check(int status, const CopyFailure& failure, const char* what) {
  if (status == kLinkFailed) raise_link_failed(failure);
  TORCH_CHECK(status == kSuccess, "vcard: ", what, " failed: ", host().driver.status_name(status));
}

std::string name_of(int place) { return place == kHostMemory ? "the host" : "vcard:" + std::to_string(place); }

}  // namespace

c10::Stream current_stream(int card) { return stream_of(card, current_ids[card]); }

c10::Stream exchange_stream(c10::Stream stream) {
  const int card = stream.device_index();
  const c10::Stream outer = current_stream(card);
  current_ids[card] = stream.id();
  return outer;
}

c10::Stream new_side_stream(int card) {
  static auto* streams = new SideStreams;
  check_ordinal(card);
  side_streams_exist.store(true, std::memory_order_relaxed);
  return stream_of(card, streams->next(card));
}

Stream handle_of(const c10::Stream& stream) {
  return reinterpret_cast<Stream>(static_cast<std::intptr_t>(stream.id()));
}

bool is_empty(const c10::Stream& stream) {
  if (!is_side(stream)) return true;
  int empty = 0;
  check(host().stream_empty(stream.device_index(), handle_of(stream), &empty), {}, "to ask for a stream's work");
  return empty != 0;
}

void wait_for_stream(const c10::Stream& waiting, const c10::Stream& awaited) {
  Event event = nullptr;
  const int status = host().driver.event_record(awaited.device_index(), handle_of(awaited), &event);
  check(status, {}, "to record an event");
  const auto forget = [](void* made) { host().driver.event_destroy(made); };
  const std::unique_ptr<void, decltype(forget)> owner(event, forget);
  wait_for_event(event, waiting);
}

void wait_for_event(Event event, const c10::Stream& stream) {
  CopyFailure failure{};
  int status = kSuccess;
  {
    const WithoutInterpreterLock unlocked;
    status = host().stream_wait(stream.device_index(), handle_of(stream), event, &failure);
  }
  check(status, failure, "to wait for an event");
}

void drain_stream(const c10::Stream& stream) {
  if (!is_side(stream)) return;
  CopyFailure failure{};
  int status = kSuccess;
  {
    const WithoutInterpreterLock unlocked;
    status = host().stream_finish(stream.device_index(), handle_of(stream), &failure);
  }
  check(status, failure, "to finish a stream");
}

void drain_event(Event event) {
  CopyFailure failure{};
  int status = kSuccess;
  {
    const WithoutInterpreterLock unlocked;
    status = host().event_finish(event, &failure);
  }
  check(status, failure, "to finish an event");
}

void drain_card(int card) {
  CopyFailure failure{};
  int status = kSuccess;
  {
    const WithoutInterpreterLock unlocked;
    status = host().card_finish(card, &failure);
  }
  check(status, failure, "to finish a card");
}

void wait_for_arrival(const LinkPassage& passage) {
  const WithoutInterpreterLock unlocked;
  host().link_end(&passage);
}

void drain_current_stream(int card) {
  if (current_ids[card] != 0) drain_stream(current_stream(card));
}

void raise_link_failed(const CopyFailure& failure) {
  const std::string pair = name_of(failure.source) + " -> " + name_of(failure.target);
  throw c10::AcceleratorError({__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, kLinkFailed,
                              "a copy of " + std::to_string(failure.nbytes) + " bytes over the link " + pair +
                                  " failed (CUDA error 220, uncorrectable NVLink error): its target holds no valid "
                                  "bytes; copy again by another "
                                  "route, such as through the host, and use the link no more");
}

}  // namespace poolrt::vcard
