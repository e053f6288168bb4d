// The Python module poolrt._C: the driver tables as objects. A failed call raises poolrt.errors.DriverError, which
// tells the call, the status and its name; everything below this file returns statuses.
#include "bind.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "driver.hpp"

namespace py = pybind11;

namespace poolrt {

void raise_driver_error(const std::string& message, int code, const std::string& name) {
  const py::object error = py::module_::import("poolrt.errors").attr("DriverError")(message);
  error.attr("code") = code;
  error.attr("name") = name;
  PyErr_SetObject(py::type::of(error).ptr(), error.ptr());
  throw py::error_already_set();
}

namespace {

class Driver {
 public:
  explicit Driver(const DriverTable* table) : table_(table) { check("init()", table_->init()); }

  std::string name() const { return table_->name; }

  int driver_version() const {
    int version = 0;
    check("driver_version()", table_->driver_version(&version));
    return version;
  }

  int device_count() const {
    int count = 0;
    check("device_count()", table_->device_count(&count));
    return count;
  }

  std::string device_name(int card) const {
    std::array<char, 256> text{};
    check(with_card("device_name", card), table_->device_name(card, text.data(), text.size()));
    return text.data();
  }

  std::size_t total_memory(int card) const {
    std::size_t nbytes = 0;
    check(with_card("total_memory", card), table_->total_memory(card, &nbytes));
    return nbytes;
  }

  std::pair<std::size_t, std::size_t> memory_info(int card) const {
    std::size_t free_nbytes = 0;
    std::size_t total_nbytes = 0;
    check(with_card("memory_info", card), table_->memory_info(card, &free_nbytes, &total_nbytes));
    return {free_nbytes, total_nbytes};
  }

  std::size_t granularity(int place) const {
    std::size_t nbytes = 0;
    check(with_card("granularity", place), table_->granularity(place, &nbytes));
    return nbytes;
  }

  bool can_access_peer(int card, int peer) const {
    int possible = 0;
    check("can_access_peer(card=" + std::to_string(card) + ", peer=" + std::to_string(peer) + ")",
          table_->can_access_peer(card, peer, &possible));
    return possible != 0;
  }

 protected:
  static std::string with_card(const char* call, int card) {
    return std::string(call) + "(card=" + std::to_string(card) + ")";
  }

  void check(const std::string& call, int status) const {
    if (status == kSuccess) return;
    const std::string name = table_->status_name(status);
    std::string message = name + " (" + std::to_string(status) + ") from " + table_->name + " driver, " + call;
    int count = 0;
    if (status == kInvalidDevice && table_->device_count(&count) == kSuccess) {
      message += "; this driver has " + std::to_string(count) + " cards, numbered from 0";
    }
    raise_driver_error(message, status, name);
  }

 private:
  const DriverTable* table_;
};

class HostDriver : public Driver {
 public:
  HostDriver() : Driver(&host_driver_table()->driver), table_(host_driver_table()) {}

  void configure(const std::vector<std::size_t>& capacities) const {
    check("configure(" + std::to_string(capacities.size()) + " cards; 1 to " + std::to_string(kMaxCards) + " can be)",
          table_->configure(static_cast<int>(capacities.size()), capacities.data()));
  }

  void set_capacity(int card, std::size_t nbytes) const {
    check(with_card("set_capacity", card), table_->set_capacity(card, nbytes));
  }

  void set_peer(int card, int peer, bool possible) const {
    check("set_peer(card=" + std::to_string(card) + ", peer=" + std::to_string(peer) + ")",
          table_->set_peer(card, peer, possible ? 1 : 0));
  }

  std::uintptr_t memory_allocate(int card, std::size_t nbytes) const {
    void* pointer = nullptr;
    check("memory_allocate(card=" + std::to_string(card) + ", nbytes=" + std::to_string(nbytes) + ")",
          table_->memory_allocate(card, nbytes, &pointer));
    return reinterpret_cast<std::uintptr_t>(pointer);
  }

  void memory_free(std::uintptr_t address) const {
    check("memory_free(address)", table_->memory_free(reinterpret_cast<void*>(address)));
  }

  Ledger ledger(int card) const {
    Ledger ledger{};
    check(with_card("ledger", card), table_->ledger(card, &ledger));
    return ledger;
  }

  void reset_peak(int card) const { check(with_card("reset_peak", card), table_->reset_peak(card)); }

  void set_host_capacity(std::optional<std::size_t> nbytes) const {
    set_capacity(kHostMemory, nbytes.value_or(std::numeric_limits<std::size_t>::max()));
  }

  PageState page_state() const {
    PageState state{};
    check("page_state()", table_->page_state(&state));
    return state;
  }

  std::uintptr_t stream_create(int card) const {
    Stream stream = nullptr;
    check(with_card("stream_create", card), table_->stream_create(card, &stream));
    return reinterpret_cast<std::uintptr_t>(stream);
  }

  std::uintptr_t default_stream(int card) const {
    Stream stream = nullptr;
    check(with_card("default_stream", card), table_->default_stream(card, &stream));
    return reinterpret_cast<std::uintptr_t>(stream);
  }

  void stream_hold(std::uintptr_t stream) const {
    check(with_stream("stream_hold", stream), table_->stream_hold(reinterpret_cast<Stream>(stream)));
  }

  void stream_pass(std::uintptr_t stream) const {
    check(with_stream("stream_pass", stream), table_->stream_pass(reinterpret_cast<Stream>(stream)));
  }

  void stream_destroy(std::uintptr_t stream) const {
    check(with_stream("stream_destroy", stream), table_->stream_destroy(reinterpret_cast<Stream>(stream)));
  }

  std::uint64_t calls() const {
    std::uint64_t count = 0;
    check("calls()", table_->calls(&count));
    return count;
  }

  void set_fault(std::uint64_t at_call, int status, std::uint32_t delay_us, std::uint64_t count) const {
    const Fault fault = {at_call, status, delay_us, count};
    check("set_fault(at_call=" + std::to_string(at_call) + ", count=" + std::to_string(count) + "), both from 1 on",
          table_->set_fault(&fault));
  }

  void clear_fault() const { check("clear_fault()", table_->clear_fault()); }

 private:
  static std::string with_stream(const char* call, std::uintptr_t stream) {
    return std::string(call) + "(stream=" + std::to_string(stream) + ")";
  }

  const HostTable* table_;
};

Driver open_cuda_driver() {
  const char* why = nullptr;
  const DriverTable* table = cuda_driver_table(&why);
  if (table == nullptr) {
    raise_driver_error(
        "no CUDA driver on this machine (" + std::string(why) +
            "); install the NVIDIA driver, or use virtual cards: poolrt.virtual(cards=2, memory=\"4GiB\")",
        kNotFound, "NOT_FOUND");
  }
  return Driver(table);
}

std::uintptr_t host_table_address() { return reinterpret_cast<std::uintptr_t>(host_driver_table()); }

PYBIND11_MODULE(_C, module) {
  module.doc() = "The driver tables of poolrt.";
  module.attr("MAX_CARDS") = kMaxCards;
  module.attr("HOST_MEMORY") = kHostMemory;

  py::class_<Driver>(module, "Driver")
      .def_property_readonly("name", &Driver::name)
      .def("driver_version", &Driver::driver_version)
      .def("device_count", &Driver::device_count)
      .def("device_name", &Driver::device_name, py::arg("card"))
      .def("total_memory", &Driver::total_memory, py::arg("card"))
      .def("memory_info", &Driver::memory_info, py::arg("card"))
      .def("granularity", &Driver::granularity, py::arg("place"))
      .def("can_access_peer", &Driver::can_access_peer, py::arg("card"), py::arg("peer"));

  py::class_<Ledger>(module, "Ledger")
      .def_readonly("used_nbytes", &Ledger::used_nbytes)
      .def_readonly("peak_nbytes", &Ledger::peak_nbytes)
      .def_readonly("capacity_nbytes", &Ledger::capacity_nbytes)
      .def_readonly("allocation_count", &Ledger::allocation_count)
      .def_readonly("refusal_count", &Ledger::refusal_count);

  py::class_<PageState>(module, "PageState")
      .def_readonly("handle_count", &PageState::handle_count)
      .def_readonly("mapping_count", &PageState::mapping_count)
      .def_readonly("mapped_nbytes", &PageState::mapped_nbytes)
      .def_readonly("reserved_nbytes", &PageState::reserved_nbytes)
      .def_readonly("event_count", &PageState::event_count)
      .def_readonly("stream_count", &PageState::stream_count);

  py::class_<HostDriver, Driver>(module, "HostDriver")
      .def("configure", &HostDriver::configure, py::arg("capacities"))
      .def("set_capacity", &HostDriver::set_capacity, py::arg("card"), py::arg("nbytes"))
      .def("set_peer", &HostDriver::set_peer, py::arg("card"), py::arg("peer"), py::arg("possible"))
      .def("memory_allocate", &HostDriver::memory_allocate, py::arg("card"), py::arg("nbytes"))
      .def("memory_free", &HostDriver::memory_free, py::arg("address"))
      .def("ledger", &HostDriver::ledger, py::arg("card") = kHostMemory)
      .def("reset_peak", &HostDriver::reset_peak, py::arg("card") = kHostMemory)
      .def("set_host_capacity", &HostDriver::set_host_capacity, py::arg("nbytes"))
      .def("page_state", &HostDriver::page_state)
      .def("stream_create", &HostDriver::stream_create, py::arg("card"))
      .def("default_stream", &HostDriver::default_stream, py::arg("card"))
      .def("stream_hold", &HostDriver::stream_hold, py::arg("stream"))
      .def("stream_pass", &HostDriver::stream_pass, py::arg("stream"))
      .def("stream_destroy", &HostDriver::stream_destroy, py::arg("stream"))
      .def("calls", &HostDriver::calls)
      .def("set_fault", &HostDriver::set_fault, py::arg("at_call"), py::arg("status") = 0, py::arg("delay_us") = 0,
           py::arg("count") = 1)
      .def("clear_fault", &HostDriver::clear_fault);

  module.def("cuda_driver", &open_cuda_driver);
  module.def("host_driver", [] { return HostDriver(); });
  module.def("host_table_address", &host_table_address);
  bind_links(module);
  bind_pool(module);
}

}  // namespace
}  // namespace poolrt
