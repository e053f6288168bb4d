#include "pool_message.hpp"

#include <array>
#include <cstdio>
#include <utility>

#include "driver.hpp"

namespace poolrt {
namespace {

thread_local std::string message_of_this_thread;

}  // namespace

const char* last_pool_message() { return message_of_this_thread.c_str(); }
void set_pool_message(std::string message) { message_of_this_thread = std::move(message); }

std::string sized(std::size_t nbytes) {
  constexpr std::array<const char*, 5> kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  if (nbytes < 1024) return std::to_string(nbytes) + " bytes";
  double size = static_cast<double>(nbytes);
  std::size_t unit = 0;
  for (; size >= 1024 && unit + 1 < kUnits.size(); ++unit) size /= 1024;
  std::array<char, 48> text{};
  std::snprintf(text.data(), text.size(), "%.1f %s", size, kUnits[unit]);
  return text.data();
}

std::string place_name(int place) { return place == kHostMemory ? "host" : "card " + std::to_string(place); }

}  // namespace poolrt
