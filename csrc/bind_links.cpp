// Models, faults and counters of the links between virtual cards, for poolrt/virtual_cards/links.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "bind.hpp"
#include "driver.hpp"
#include "host_links.hpp"

namespace py = pybind11;

namespace poolrt {
namespace {

void check(const char* call, int source, int target, int status) {
  if (status == kSuccess) return;
  const DriverTable& driver = host_driver_table()->driver;
  const std::string name = driver.status_name(status);
  int cards = 0;
  driver.device_count(&cards);
  raise_driver_error(name + " (" + std::to_string(status) + ") from HOST driver, " + call +
                         "(source=" + std::to_string(source) + ", target=" + std::to_string(target) +
                         "); a link joins two different places: cards, of which there are " + std::to_string(cards) +
                         " numbered from 0, and the host, " + std::to_string(kHostMemory),
                     status, name);
}

void set_model(int source, int target, double bytes_per_s, double latency_s) {
  const LinkModel model = {bytes_per_s, latency_s};
  check("link_set_model", source, target, host_driver_table()->link_set_model(source, target, &model));
}

void set_fault(int source, int target, int kind, std::optional<std::size_t> at_byte, std::size_t at_least_nbytes,
               std::optional<std::uint64_t> after_copies, std::optional<std::uint64_t> after_nbytes) {
  const LinkFault fault = {kind, at_byte.value_or(kMiddleByte), at_least_nbytes, after_copies.value_or(kNoLimit),
                           after_nbytes.value_or(kNoLimit)};
  check("link_set_fault", source, target, host_driver_table()->link_set_fault(source, target, &fault));
}

LinkState state(int source, int target) {
  LinkState now{};
  check("link_state", source, target, host_driver_table()->link_state(source, target, &now));
  return now;
}

// Asked before every copy that might go on beside other work: one call for all the ways.
bool copies_take_time(int source, int target) {
  const auto is_card = [](int place) { return place >= 0 && place < kMaxCards; };
  if (!is_card(source) || !is_card(target)) return false;
  const auto modelled = [](int from, int to) {
    const host_driver::HostLink* link = host_driver::links().between(from, to);
    return link != nullptr && link->modelled();
  };
  return modelled(source, target) || modelled(source, kHostMemory) || modelled(kHostMemory, target);
}

}  // namespace

void bind_links(py::module_& module) {
  module.attr("LINK_SOUND") = static_cast<int>(kLinkSound);
  module.attr("LINK_LIES") = static_cast<int>(kLinkLies);
  module.attr("LINK_DIES") = static_cast<int>(kLinkDies);

  py::class_<LinkState>(module, "LinkState")
      .def_readonly("copies", &LinkState::copies)
      .def_readonly("nbytes", &LinkState::nbytes)
      .def_property_readonly("up", [](const LinkState& now) { return now.up != 0; });

  module.def("link_set_model", &set_model, py::arg("source"), py::arg("target"), py::arg("bytes_per_s"),
             py::arg("latency_s") = 0.0);
  module.def("link_set_fault", &set_fault, py::arg("source"), py::arg("target"), py::arg("kind"),
             py::arg("at_byte") = py::none(), py::arg("at_least_nbytes") = 0, py::arg("after_copies") = py::none(),
             py::arg("after_nbytes") = py::none());
  module.def("copies_take_time", &copies_take_time, py::arg("source"), py::arg("target"));
  module.def("link_state", &state, py::arg("source"), py::arg("target"));
}

}  // namespace poolrt
