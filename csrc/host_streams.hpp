// Streams and events of cards that work at once: a stream is a count of positions and, while it is held, the position
// from which on work is pending.
#pragma once

#include <cstdint>

#include "driver.hpp"

namespace poolrt::host_driver {

int stream_create(int card, Stream* stream);
int stream_destroy(Stream stream);
int stream_hold(Stream stream);
int stream_pass(Stream stream);
int default_stream(int card, Stream* stream);

int event_record(int card, Stream stream, Event* event);
int event_passed(Event event, int* passed);
int event_destroy(Event event);
int drain(int card);

void count_streams(PageState* state);

}  // namespace poolrt::host_driver
