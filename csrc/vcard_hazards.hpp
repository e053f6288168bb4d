// Finds memory that is freed too early. On GPUs a tensor's memory may be handed out again, to work of the stream it was
// made in, as soon as the tensor is freed, so whoever uses it in another stream has to call tensor.record_stream, or to
// let the tensor's own stream (or the program) wait for that use. Virtual cards keep the memory until the use is over;
// what would have gone wrong is written down here, whether or not the copy happened to be fast.
//
// Nothing is watched before there is a side stream; then only memory that was made in one, or used in another than its
// own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <string>
#include <vector>

#include "driver.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {

void install_hazards();

inline bool hazards_are_watched() { return side_streams_exist.load(std::memory_order_relaxed); }

// What happened, in the program's order.
void note_use(const at::Tensor& tensor, const c10::Stream& stream);        // one piece of work of the stream uses it
void note_allowed(const c10::DataPtr& memory, const c10::Stream& stream);  // record_stream

void note_recorded(Event event, const c10::Stream& stream);
void note_forgotten(Event event);
void note_waited(const c10::Stream& stream, Event event);
void note_waited(const c10::Stream& stream, const c10::Stream& other);
void note_finished(Event event);
void note_finished(const c10::Stream& stream);
void note_finished_card(int card);

std::vector<std::string> hazards();  // a sentence each, the first hundred
void reset_hazards();

}  // namespace poolrt::vcard
