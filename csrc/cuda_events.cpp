#include "cuda_events.hpp"

#include <memory>

#include "cuda_context.hpp"
#include "cuda_library.hpp"

namespace poolrt::cuda_driver {
namespace {

// What an Event of the table points to: libcuda's own event works in its card's context only.
struct CardEvent {
  int card;
  Event event;
};

}  // namespace

int event_record(int card, Stream stream, Event* event) {
  auto made = std::make_unique<CardEvent>(CardEvent{card, nullptr});
  const int status = in_context_of(card, [&] {
    if (const int created = call(cuda().event_create, &made->event, kEventDisableTiming)) return created;
    const int recorded = call(cuda().event_record, made->event, stream);
    if (recorded != kSuccess) call(cuda().event_destroy, made->event);
    return recorded;
  });
  if (status == kSuccess) *event = made.release();
  return status;
}

int event_passed(Event event, int* passed) {
  const auto* made = static_cast<const CardEvent*>(event);
  const int status = in_context_of(made->card, [&] { return call(cuda().event_query, made->event); });
  if (status != kSuccess && status != kNotReady) return status;
  *passed = status == kSuccess ? 1 : 0;
  return kSuccess;
}

int event_destroy(Event event) {
  const auto* made = static_cast<const CardEvent*>(event);
  const int status = in_context_of(made->card, [&] { return call(cuda().event_destroy, made->event); });
  if (status == kSuccess) delete made;
  return status;
}

int drain(int card) {
  return in_context_of(card, [] { return call(cuda().context_synchronize); });
}

}  // namespace poolrt::cuda_driver
