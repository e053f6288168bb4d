// Streams and events of the HOST driver's cards, by their handles.
#pragma once

#include <cstdint>

#include "driver.hpp"

namespace poolrt::host_driver {

int stream_create(int card, Stream* stream);
int stream_destroy(Stream stream);
int stream_hold(Stream stream);
int stream_pass(Stream stream);
int default_stream(int card, Stream* stream);

int stream_copy(int card, Stream stream, const StreamCopy* copy);
int stream_wait(int card, Stream stream, Event event, CopyFailure* failure);
int stream_empty(int card, Stream stream, int* empty);
int stream_finish(int card, Stream stream, CopyFailure* failure);
int card_finish(int card, CopyFailure* failure);

int event_record(int card, Stream stream, Event* event);
int event_passed(Event event, int* passed);
int event_finish(Event event, CopyFailure* failure);
int event_time(Event event, std::int64_t* passed_ns);
int event_destroy(Event event);
int drain(int card);

void forget_failures();  // no stream has one to tell any more
void count_streams(PageState* state);

}  // namespace poolrt::host_driver
