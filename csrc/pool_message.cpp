#include "pool_message.hpp"

#include <array>
#include <cstdio>
#include <utility>

#include "driver.hpp"

namespace poolrt {
namespace {

thread_local std::string message_of_this_thread;

struct Unit {
  const char* name;
  std::size_t nbytes;
};

constexpr std::array<Unit, 5> kUnits = {{{"TiB", std::size_t{1} << 40},
                                         {"GiB", std::size_t{1} << 30},
                                         {"MiB", std::size_t{1} << 20},
                                         {"KiB", std::size_t{1} << 10},
                                         {"bytes", 1}}};

Unit unit_for(std::size_t nbytes) {
  for (const Unit& unit : kUnits) {
    if (nbytes >= unit.nbytes) return unit;
  }
  return kUnits.back();
}

std::string number_in(const Unit& unit, std::size_t nbytes) {
  if (unit.nbytes == 1) return std::to_string(nbytes);
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f", static_cast<double>(nbytes) / static_cast<double>(unit.nbytes));
  return text.data();
}

}  // namespace

const char* last_pool_message() { return message_of_this_thread.c_str(); }
void set_pool_message(std::string message) { message_of_this_thread = std::move(message); }

std::string sized(std::size_t nbytes) {
  const Unit unit = unit_for(nbytes);
  return number_in(unit, nbytes) + " " + unit.name;
}

std::string sized_of(std::size_t part, std::size_t whole) {
  const Unit unit = unit_for(whole);
  return number_in(unit, part) + " of " + number_in(unit, whole) + " " + unit.name;
}

std::string place_name(int place) { return place == kHostMemory ? "host" : "card " + std::to_string(place); }

}  // namespace poolrt
