// Order on the HOST driver: streams that are held make a missing wait visible.
#include <atomic>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

using poolrt::Event;
using poolrt::kInvalidDevice;
using poolrt::kInvalidHandle;
using poolrt::kInvalidValue;
using poolrt::Stream;

Event record(int card, Stream stream) {
  Event event = nullptr;
  EXPECT_OK(driver().event_record(card, stream, &event));
  EXPECT(event != nullptr);
  return event;
}

void destroy(const std::vector<Event>& events) {
  for (const Event event : events) EXPECT_OK(driver().event_destroy(event));
}

//     event a    stream_hold    event b    stream_pass    event c
//     ---+------------+------------+------------+------------+---->
CASE(an_event_waits_for_what_was_held_before_it) {
  configure({kMiB});
  const Stream stream = create_stream(0);
  const Event a = record(0, stream);
  EXPECT_OK(host().stream_hold(stream));
  const Event b = record(0, stream);
  EXPECT(passed(a) && !passed(b));
  EXPECT_OK(host().stream_pass(stream));
  const Event c = record(0, stream);
  EXPECT(passed(a) && passed(b) && passed(c));
  EXPECT_OK(host().stream_hold(stream));
  EXPECT(passed(b) && passed(c));  // work that came later does not take it back
  EXPECT_OK(host().stream_pass(stream));
  destroy({a, b, c});
  EXPECT_OK(host().stream_destroy(stream));
  EXPECT(nothing_is_left());
}

CASE(to_hold_twice_is_to_hold_from_the_first_time) {
  configure({kMiB});
  const Stream stream = create_stream(0);
  EXPECT_OK(host().stream_hold(stream));
  const Event event = record(0, stream);
  EXPECT_OK(host().stream_hold(stream));
  EXPECT(!passed(event));
  EXPECT_OK(host().stream_pass(stream));
  EXPECT(passed(event));
  destroy({event});
  EXPECT_OK(host().stream_destroy(stream));
}

CASE(streams_are_held_each_by_itself) {
  configure({kMiB, kMiB});
  const Stream first = create_stream(0);
  const Stream second = create_stream(0);
  const Stream elsewhere = create_stream(1);
  EXPECT_OK(host().stream_hold(first));
  const std::vector<Event> events = {record(0, first), record(0, second), record(1, elsewhere), record(0, nullptr)};
  EXPECT(!passed(events[0]) && passed(events[1]) && passed(events[2]) && passed(events[3]));
  EXPECT(page_state().event_count == 4 && page_state().stream_count == 3);
  EXPECT_OK(host().stream_pass(first));
  destroy(events);
  for (const Stream stream : {first, second, elsewhere}) EXPECT_OK(host().stream_destroy(stream));
  EXPECT(nothing_is_left());
}

CASE(no_stream_means_the_cards_default_stream) {
  configure({kMiB, kMiB});
  Stream stream = nullptr;
  EXPECT_OK(host().default_stream(1, &stream));
  EXPECT_OK(host().stream_hold(stream));
  const Event other = record(0, nullptr);
  const Event event = record(1, nullptr);
  EXPECT(passed(other) && !passed(event));
  EXPECT(host().stream_destroy(stream) == kInvalidValue);
  EXPECT_OK(host().stream_pass(stream));
  EXPECT(passed(event));
  EXPECT(host().stream_destroy(stream) == kInvalidValue);
  destroy({other, event});
  EXPECT(nothing_is_left());
}

CASE(what_is_no_stream_or_event_is_refused) {
  configure({kMiB, kMiB});
  const Stream stream = create_stream(0);
  Event event = nullptr;
  int answer = 0;
  EXPECT(driver().event_record(1, stream, &event) == kInvalidHandle);  // a stream of another card
  EXPECT(driver().event_record(2, nullptr, &event) == kInvalidDevice);
  EXPECT(host().stream_create(2, &event) == kInvalidDevice && host().default_stream(-1, &event) == kInvalidDevice);
  EXPECT(event == nullptr);
  event = record(0, stream);
  EXPECT_OK(host().stream_hold(stream));
  EXPECT(host().stream_destroy(stream) == kInvalidValue);
  EXPECT_OK(host().stream_pass(stream));
  EXPECT_OK(host().stream_destroy(stream));
  EXPECT(host().stream_destroy(stream) == kInvalidHandle);
  EXPECT(host().stream_hold(stream) == kInvalidHandle && host().stream_pass(stream) == kInvalidHandle);
  EXPECT(passed(event));  // an event outlives its stream
  EXPECT_OK(driver().event_destroy(event));
  EXPECT(driver().event_destroy(event) == kInvalidHandle);
  EXPECT(driver().event_passed(event, &answer) == kInvalidHandle);
}

CASE(drain_waits_for_every_held_stream_of_its_card) {
  configure({kMiB, kMiB});
  const Stream first = create_stream(0);
  const Stream second = create_stream(0);
  const Stream elsewhere = create_stream(1);
  for (const Stream stream : {first, second, elsewhere}) EXPECT_OK(host().stream_hold(stream));
  std::atomic<int> passes{0};
  std::atomic<int> passes_seen{-1};
  std::thread waiting([&] {
    EXPECT_OK(driver().drain(0));
    passes_seen = passes.load();
  });
  for (const Stream stream : {first, second}) {
    EXPECT(passes_seen == -1);
    ++passes;
    EXPECT_OK(host().stream_pass(stream));
  }
  waiting.join();
  EXPECT(passes_seen == 2);
  EXPECT(driver().drain(2) == kInvalidDevice);
  EXPECT_OK(host().stream_pass(elsewhere));
  EXPECT_OK(driver().drain(1));
  for (const Stream stream : {first, second, elsewhere}) EXPECT_OK(host().stream_destroy(stream));
}

// While one thread holds and lets go, others record: what was recorded has passed when its stream was let go.
CASE(threads_share_a_stream) {
  configure({kMiB});
  const Stream stream = create_stream(0);
  std::atomic<bool> stop{false};
  std::thread holder([&] {
    while (!stop) {
      EXPECT_OK(host().stream_hold(stream));
      EXPECT_OK(host().stream_pass(stream));
    }
  });
  const auto work = [&] {
    for (int i = 0; i < 2000; ++i) {
      const Event event = record(0, stream);
      EXPECT_OK(driver().drain(0));
      EXPECT(passed(event));
      EXPECT_OK(driver().event_destroy(event));
    }
  };
  std::thread first(work);
  std::thread second(work);
  first.join();
  second.join();
  stop = true;
  holder.join();
  EXPECT_OK(host().stream_destroy(stream));
  EXPECT(nothing_is_left());
}

}  // namespace
