// Copies in streams of the HOST driver: their order, their time, and what becomes of those that fail.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

using poolrt::CopyFailure;
using poolrt::Event;
using poolrt::kHostMemory;
using poolrt::kInvalidDevice;
using poolrt::kInvalidHandle;
using poolrt::kInvalidValue;
using poolrt::kLinkDies;
using poolrt::kLinkFailed;
using poolrt::kLinkLies;
using poolrt::kMiddleByte;
using poolrt::kNoLimit;
using poolrt::kNotFound;
using poolrt::kSuccess;
using poolrt::LinkFault;
using poolrt::LinkModel;
using poolrt::Stream;
using poolrt::StreamCopy;

constexpr std::size_t kNbytes = 1000;

struct Bytes {
  explicit Bytes(unsigned char value = 0, std::size_t nbytes = kNbytes) : values(nbytes, value) {}
  bool all(unsigned char value) const {
    for (const unsigned char byte : values) {
      if (byte != value) return false;
    }
    return true;
  }
  std::vector<unsigned char> values;
};

StreamCopy copy_of(const Bytes& from, Bytes& to, int source = 0, int target = 1) {
  StreamCopy copy{};
  copy.source = source;
  copy.target = target;
  copy.to = to.values.data();
  copy.from = from.values.data();
  copy.nbytes = from.values.size();
  return copy;
}

void queue(Stream stream, const StreamCopy& copy) { EXPECT_OK(host().stream_copy(0, stream, &copy)); }

Event record(Stream stream) {
  Event event = nullptr;
  EXPECT_OK(driver().event_record(0, stream, &event));
  return event;
}

bool empty(Stream stream) {
  int answer = -1;
  EXPECT_OK(host().stream_empty(0, stream, &answer));
  return answer == 1;
}

int wait(Stream stream, Event event) {
  CopyFailure failure{};
  return host().stream_wait(0, stream, event, &failure);
}

int finish(Stream stream) {
  CopyFailure failure{};
  return host().stream_finish(0, stream, &failure);
}

int finish_event(Event event) {
  CopyFailure failure{};
  return host().event_finish(event, &failure);
}

void kill(int source, int target, std::uint64_t after_copies = 0) {
  const LinkFault fault = {kLinkDies, 0, 0, after_copies, kNoLimit};
  EXPECT_OK(host().link_set_fault(source, target, &fault));
}

void destroy(const std::vector<Event>& events, const std::vector<Stream>& streams) {
  for (const Event event : events) EXPECT_OK(driver().event_destroy(event));
  for (const Stream stream : streams) EXPECT_OK(host().stream_destroy(stream));
  EXPECT(nothing_is_left());
}

//     stream    | copy 1 -> a | copy a -> b | event |
CASE(an_idle_streams_copy_is_made_at_once) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  Bytes b;
  queue(stream, copy_of(ones, a));
  EXPECT(a.all(1) && empty(stream));
  queue(stream, copy_of(a, b));
  const Event event = record(stream);
  EXPECT(b.all(1) && passed(event));
  destroy({event}, {stream});
}

//     stream    | gate | copy 1 -> a | copy a -> b | event |      done in this order, none before stream_pass
CASE(a_held_streams_copies_come_in_order_when_it_is_let_go) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  Bytes b;
  EXPECT_OK(host().stream_hold(stream));
  queue(stream, copy_of(ones, a));
  queue(stream, copy_of(a, b));
  const Event event = record(stream);
  EXPECT(a.all(0) && b.all(0) && !passed(event) && !empty(stream));
  EXPECT(host().stream_destroy(stream) == kInvalidValue);
  EXPECT_OK(host().stream_pass(stream));
  EXPECT_OK(finish_event(event));
  EXPECT(a.all(1) && b.all(1) && passed(event));
  destroy({event}, {stream});
}

//     first     | gate | copy 1 -> a | event |
//     second    | wait event | copy a -> b |
CASE(a_stream_waits_for_another_streams_event) {
  configure({kMiB, kMiB});
  const Stream first = create_stream(0);
  const Stream second = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  Bytes b;
  EXPECT_OK(host().stream_hold(first));
  queue(first, copy_of(ones, a));
  const Event event = record(first);
  EXPECT_OK(wait(second, event));
  queue(second, copy_of(a, b));
  EXPECT(b.all(0) && !empty(second));
  EXPECT_OK(host().stream_pass(first));
  EXPECT_OK(finish(second));
  EXPECT(b.all(1));
  destroy({event}, {first, second});
}

CASE(an_event_may_be_destroyed_while_a_stream_waits_for_it) {
  configure({kMiB, kMiB});
  const Stream first = create_stream(0);
  const Stream second = create_stream(0);
  EXPECT_OK(host().stream_hold(first));
  const Event event = record(first);
  EXPECT_OK(wait(second, event));
  EXPECT_OK(driver().event_destroy(event));
  EXPECT(!empty(second));
  EXPECT_OK(host().stream_pass(first));
  EXPECT_OK(finish(second));
  destroy({}, {first, second});
}

CASE(the_default_stream_makes_its_caller_wait) {
  configure({kMiB, kMiB});
  set_model(0, 1, 50.0 * kNbytes);  // 20 ms
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  queue(stream, copy_of(ones, a));
  const Event event = record(stream);
  EXPECT_OK(wait(nullptr, event));
  EXPECT(passed(event) && a.all(1));
  const StreamCopy copy = copy_of(ones, a);
  EXPECT(host().stream_copy(0, nullptr, &copy) == kInvalidValue);
  destroy({event}, {stream});
}

//     start | copy: 2 ms of latency, 1000 bytes in 10 ms | end | copy | last         by the link's clock, to the ns
CASE(modelled_copies_take_their_time_without_drift) {
  configure({kMiB, kMiB});
  set_model(0, 1, 100.0 * kNbytes, 0.002);
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  EXPECT_OK(host().stream_hold(stream));
  std::vector<Event> events = {record(stream)};
  for (int i = 0; i < 3; ++i) {
    queue(stream, copy_of(ones, a));
    events.push_back(record(stream));
  }
  std::int64_t at_ns = 0;
  EXPECT(host().event_time(events[0], &at_ns) == kNotFound);
  const auto before = std::chrono::steady_clock::now();
  EXPECT_OK(host().stream_pass(stream));
  EXPECT_OK(driver().drain(0));
  EXPECT(std::chrono::steady_clock::now() - before >= std::chrono::milliseconds(36));
  EXPECT(a.all(1));
  std::vector<std::int64_t> times;
  for (const Event event : events) {
    EXPECT_OK(host().event_time(event, &at_ns));
    times.push_back(at_ns);
  }
  for (int i = 1; i <= 3; ++i) EXPECT(times[i] - times[i - 1] == 12000000);
  destroy(events, {stream});
}

//     first     | copy .......... |            one link: the second stream's copy begins where the first one's ended
//     second                      | copy .......... |
CASE(streams_take_turns_on_a_link) {
  configure({kMiB, kMiB});
  set_model(0, 1, 100.0 * kNbytes);
  const Stream gate = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  Bytes b;
  EXPECT_OK(host().stream_hold(gate));
  const Event start = record(gate);
  const std::vector<Stream> streams = {create_stream(0), create_stream(0)};
  std::vector<Event> ends;
  for (const Stream stream : streams) {
    EXPECT_OK(wait(stream, start));
    queue(stream, copy_of(ones, stream == streams[0] ? a : b));
    ends.push_back(record(stream));
  }
  EXPECT_OK(host().stream_pass(gate));
  for (const Event end : ends) EXPECT_OK(finish_event(end));
  std::int64_t start_ns = 0;
  EXPECT_OK(host().event_time(start, &start_ns));
  for (int i = 0; i < 2; ++i) {
    std::int64_t end_ns = 0;
    EXPECT_OK(host().event_time(ends[i], &end_ns));
    EXPECT(end_ns - start_ns == 10000000 * (i + 1));
  }
  EXPECT(a.all(1) && b.all(1));
  destroy({start, ends[0], ends[1]}, {gate, streams[0], streams[1]});
}

CASE(done_is_called_once_for_every_copy_also_for_a_failed_one) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  std::atomic<int> done{0};
  StreamCopy copy = copy_of(ones, a);
  copy.context = &done;
  copy.done = [](void* context) { ++*static_cast<std::atomic<int>*>(context); };
  kill(0, 1, 2);
  for (int i = 0; i < 3; ++i) queue(stream, copy);
  EXPECT(done == 3);
  EXPECT(finish(stream) == kLinkFailed);
  set_model(0, 1, 1e9);
  for (int i = 0; i < 3; ++i) queue(stream, copy);
  EXPECT(finish(stream) == kLinkFailed && done == 6);
  destroy({}, {stream});
}

CASE(a_failure_is_told_once_by_its_stream_and_always_by_its_event) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  kill(0, 1);
  queue(stream, copy_of(ones, a));
  const Event event = record(stream);
  EXPECT(passed(event) && a.all(0));
  CopyFailure failure{};
  EXPECT(host().stream_finish(0, stream, &failure) == kLinkFailed);
  EXPECT(failure.source == 0 && failure.target == 1 && failure.nbytes == kNbytes);
  EXPECT_OK(finish(stream));
  EXPECT(finish_event(event) == kLinkFailed && finish_event(event) == kLinkFailed);
  EXPECT(wait(nullptr, event) == kLinkFailed);
  const Event later = record(stream);
  EXPECT_OK(finish_event(later));
  destroy({event, later}, {stream});
}

//     first     | copy fails | event |
//     second                 | wait event | event |         the second stream's work rests on bytes that never came
CASE(a_failure_goes_on_to_streams_that_waited) {
  configure({kMiB, kMiB});
  const Stream first = create_stream(0);
  const Stream second = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  kill(0, 1);
  queue(first, copy_of(ones, a));
  const Event event = record(first);
  EXPECT_OK(wait(second, event));
  const Event after = record(second);
  EXPECT(finish_event(after) == kLinkFailed);
  EXPECT(finish(second) == kSuccess && finish(first) == kSuccess);  // told already
  queue(first, copy_of(ones, a));
  CopyFailure failure{};
  EXPECT(host().card_finish(0, &failure) == kLinkFailed && failure.nbytes == kNbytes);
  EXPECT_OK(host().card_finish(0, &failure));
  destroy({event, after}, {first, second});
}

CASE(cards_configured_anew_know_of_no_failure) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  kill(0, 1);
  queue(stream, copy_of(ones, a));
  configure({kMiB, kMiB});
  EXPECT_OK(finish(stream));
  queue(stream, copy_of(ones, a));
  EXPECT(a.all(1));
  destroy({}, {stream});
}

CASE(a_lie_is_one_wrong_byte) {
  configure({kMiB, kMiB});
  const LinkFault fault = {kLinkLies, kMiddleByte, 0, kNoLimit, kNoLimit};
  EXPECT_OK(host().link_set_fault(0, 1, &fault));
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  for (const double bytes_per_s : {0.0, 1e6}) {
    set_model(0, 1, bytes_per_s);
    Bytes a;
    queue(stream, copy_of(ones, a));
    EXPECT_OK(finish(stream));
    EXPECT(a.values[kNbytes / 2] != 1);
    a.values[kNbytes / 2] = 1;
    EXPECT(a.all(1));
  }
  destroy({}, {stream});
}

CASE(copies_that_cannot_be_are_refused) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  StreamCopy copy = copy_of(ones, a, 0, 2);
  EXPECT(host().stream_copy(0, stream, &copy) == kInvalidDevice);
  copy = copy_of(ones, a);
  EXPECT(host().stream_copy(1, stream, &copy) == kInvalidHandle);
  EXPECT(host().stream_copy(2, stream, &copy) == kInvalidDevice);
  EXPECT(wait(stream, nullptr) == kInvalidHandle && finish_event(nullptr) == kInvalidHandle);
  EXPECT(a.all(0));
  destroy({}, {stream});
}

CASE(odd_sizes_arrive_whole) {
  configure({kMiB, kMiB});
  set_model(0, kHostMemory, 1e9);
  const Stream stream = create_stream(0);
  for (const std::size_t nbytes : {std::size_t{1}, std::size_t{7}, std::size_t{9}, 12 * kMiB + 5}) {
    const Bytes ones(1, nbytes);
    Bytes a(0, nbytes);
    queue(stream, copy_of(ones, a, 0, kHostMemory));
    EXPECT_OK(finish(stream));
    EXPECT(a.all(1));
  }
  destroy({}, {stream});
}

// Threads queue copies, events and waits over two links, in streams of their own and in a shared one.
CASE(threads_queue_at_the_same_time) {
  configure({kMiB, kMiB});
  set_model(0, 1, 2e9);
  const Stream shared = create_stream(0);
  const auto work = [&](int source, int target) {
    const Stream own = create_stream(0);
    const Bytes ones(1);
    Bytes a;
    Bytes b;
    for (int i = 0; i < 300; ++i) {
      queue(own, copy_of(ones, a, source, target));
      const Event event = record(own);
      EXPECT_OK(wait(shared, event));
      queue(shared, copy_of(a, b, source, target));
      const Event end = record(shared);
      EXPECT_OK(finish_event(end));
      EXPECT(b.all(1));
      EXPECT_OK(driver().event_destroy(event));
      EXPECT_OK(driver().event_destroy(end));
    }
    EXPECT_OK(finish(own));
    EXPECT_OK(host().stream_destroy(own));
  };
  std::thread first([&] { work(0, 1); });
  std::thread second([&] { work(1, 0); });
  std::thread third([&] { work(0, kHostMemory); });
  first.join();
  second.join();
  third.join();
  EXPECT_OK(finish(shared));
  destroy({}, {shared});
}

CASE(the_carrier_comes_back_after_a_pause) {
  configure({kMiB, kMiB});
  set_model(0, 1, 1e9);
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  for (int i = 0; i < 2; ++i) {
    Bytes a;
    queue(stream, copy_of(ones, a));
    EXPECT_OK(finish(stream));
    EXPECT(a.all(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(250));  // it ends after 100
  }
  destroy({}, {stream});
}

CASE(a_forked_child_has_a_carrier_of_its_own) {
#if !defined(__SANITIZE_THREAD__)  // which allows no threads in a child
  configure({kMiB, kMiB});
  set_model(0, 1, 1e9);
  const Stream stream = create_stream(0);
  const Bytes ones(1);
  Bytes a;
  queue(stream, copy_of(ones, a));
  EXPECT_OK(finish(stream));
  const pid_t child = fork();
  if (child == 0) {
    Bytes b;
    queue(stream, copy_of(ones, b));
    _exit(finish(stream) == kSuccess && b.all(1) ? 0 : 1);
  }
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  destroy({}, {stream});
#endif
}

}  // namespace
