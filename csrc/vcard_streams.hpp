// Streams of virtual cards as torch names them: number 0 is a card's default stream, any other number is the handle of
// a stream of the HOST driver. Each thread has a current stream per card.
//
// The default stream is synchronous: its work is done in the caller's thread, at once, and its waits make the caller
// wait. A side stream queues copies; any other operator first waits until the side stream it runs under is empty.
#pragma once

#include <c10/core/Stream.h>

#include <atomic>

#include "driver.hpp"
#include "vcard_card.hpp"

namespace poolrt::vcard {

inline std::atomic<bool> side_streams_exist{false};

c10::Stream current_stream(int card);
c10::Stream exchange_stream(c10::Stream stream);  // the one that was current
c10::Stream new_side_stream(int card);            // from a card's small set, in turn, as torch.cuda does it

inline bool is_side(const c10::Stream& stream) { return stream.id() != 0; }
Stream handle_of(const c10::Stream& stream);

bool is_empty(const c10::Stream& stream);
void wait_for_event(Event event, const c10::Stream& stream);  // the stream waits; the default stream makes the caller
void wait_for_stream(const c10::Stream& waiting, const c10::Stream& awaited);  // for all that is in it so far

// These make the caller wait, without the interpreter's lock, and raise if a copy failed.
void drain_stream(const c10::Stream& stream);
void drain_event(Event event);
void drain_card(int card);
void wait_for_arrival(const LinkPassage& passage);

// What an operator of `card` does before it runs.
void drain_current_stream(int card);
inline void before_operator(int card) {
  if (C10_UNLIKELY(side_streams_exist.load(std::memory_order_relaxed))) drain_current_stream(card);
}

// torch.AcceleratorError, with the code that CUDA has for a broken NVLink.
[[noreturn]] void raise_link_failed(const CopyFailure& failure);

}  // namespace poolrt::vcard
