// What the last failed call of a thread had to say.
#pragma once

#include <cstddef>
#include <string>

namespace poolrt {

const char* last_pool_message();  // never null; valid until this thread's next failure
void set_pool_message(std::string message);

std::string sized(std::size_t nbytes);                      // "1.5 GiB"
std::string sized_of(std::size_t part, std::size_t whole);  // "0.5 of 1.5 GiB"
std::string place_name(int place);                          // "card 1" or "host"

}  // namespace poolrt
