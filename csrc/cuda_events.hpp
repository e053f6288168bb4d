// Events, and waiting for a card, through libcuda.
#pragma once

#include "driver.hpp"

namespace poolrt::cuda_driver {

int event_record(int card, Stream stream, Event* event);
int event_passed(Event event, int* passed);
int event_destroy(Event event);
int drain(int card);

}  // namespace poolrt::cuda_driver
