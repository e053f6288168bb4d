// The pool in the Python module poolrt._C. Addresses, streams and events are integers here; None is the host.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bind.hpp"
#include "driver.hpp"
#include "pool.hpp"
#include "pool_active.hpp"
#include "pool_message.hpp"
#include "pool_registry.hpp"
#include "pool_table.hpp"
#include "torch_allocator.hpp"

namespace py = pybind11;

namespace poolrt {
namespace {

using OptionalPlace = std::optional<int>;  // None: the host, or "as asked for"
using PyStream =
    std::variant<std::uintptr_t, std::pair<int, std::uintptr_t>>;  // of the block's home, or (card, stream)
using PyLiveBlock = std::tuple<std::uint64_t, std::size_t, int>;

OptionalPlace to_python(int place) { return place == kHostMemory ? OptionalPlace() : OptionalPlace(place); }
int from_python(OptionalPlace place) { return place.value_or(kHostMemory); }

const DriverTable& table_of(const py::object& driver) {
  if (py::cast<std::string>(driver.attr("name")) == "HOST") return host_driver_table()->driver;
  const char* why = nullptr;
  const DriverTable* table = cuda_driver_table(&why);
  if (table == nullptr) raise_driver_error(std::string("no CUDA driver: ") + why, kNotFound, "NOT_FOUND");
  return *table;
}

// Lets go of the interpreter lock: the call may be the one that closes a pool.
template <typename Call>
int unlocked(const Call& call) {
  const py::gil_scoped_release unlocked;
  return call();
}

void check(int status, const DriverTable& table, const char* message = nullptr) {
  if (status == kSuccess) return;
  raise_driver_error(message == nullptr ? last_pool_message() : message, status, table.status_name(status));
}

// The pool as Python sees it. No call holds the interpreter lock while it is in the pool.
class PyPool {
 public:
  PyPool(const py::object& driver, const std::vector<std::pair<int, std::size_t>>& cards, std::size_t host_limit_nbytes,
         std::size_t chunk_nbytes, std::optional<std::size_t> cache_limit_nbytes,
         const std::optional<std::vector<std::vector<int>>>& peers)
      : table_(&table_of(driver)) {
    PoolOptions options;
    for (const auto& [ordinal, limit_nbytes] : cards) options.cards.push_back({ordinal, limit_nbytes});
    options.host_limit_nbytes = host_limit_nbytes;
    options.chunk_nbytes = chunk_nbytes;
    options.cache_limit_nbytes = cache_limit_nbytes.value_or(SIZE_MAX);
    if (peers) options.peers = *peers;
    int status = kSuccess;
    pool_ = Pool::open(*table_, options, &status);
    check(status);
  }

  ~PyPool() {
    const py::gil_scoped_release unlocked;
    pool_.reset();
  }

  const std::shared_ptr<Pool>& pool() const { return pool_; }

  std::uint64_t allocate(std::size_t nbytes, int home, std::uintptr_t stream) const {
    Address address = 0;
    check(unlocked([&] { return pool_->allocate(nbytes, home, reinterpret_cast<Stream>(stream), &address); }));
    return address;
  }

  void free(std::uint64_t address, const std::vector<PyStream>& streams) const {
    check(unlocked([&] {
      std::vector<StreamUse> uses;
      LiveBlock block{};
      if (!streams.empty()) pool_->find(address, &block);
      for (const PyStream& stream : streams) uses.push_back(use_of(stream, block.home));
      return pool_->free(address, uses);
    }));
  }

  void retain(std::uint64_t address) const {
    check(unlocked([&] { return pool_->retain(address); }), "retain: no live block begins at the address");
  }

  std::vector<std::pair<OptionalPlace, std::size_t>> extents(std::uint64_t address) const {
    std::vector<Piece> pieces;
    check(unlocked([&] { return pool_->extents(address, &pieces); }), "extents: no live block holds the address");
    std::vector<std::pair<OptionalPlace, std::size_t>> extents;
    for (const Piece& piece : pieces) extents.emplace_back(to_python(piece.place), piece.nbytes);
    return extents;
  }

  PyLiveBlock find(std::uint64_t address) const {
    LiveBlock block{};
    check(unlocked([&] { return pool_->find(address, &block); }), "find: no live block holds the address");
    return {block.address, block.requested_nbytes, block.home};
  }

  int home(std::uint64_t address) const { return std::get<2>(find(address)); }

  void move(std::uint64_t address, int home) const {
    check(unlocked([&] { return pool_->move(address, home); }));
  }

  PoolStats stats() const {
    const py::gil_scoped_release unlocked;
    return pool_->stats();
  }

  std::vector<PyLiveBlock> live() const {
    const py::gil_scoped_release unlocked;
    return as_tuples(pool_->live());
  }

  std::size_t trim() const {
    std::size_t nbytes = 0;
    check(unlocked([&] { return pool_->trim(&nbytes); }));
    return nbytes;
  }

  void set_limit(OptionalPlace place, std::size_t nbytes) const {
    check(unlocked([&] { return pool_->set_limit(from_python(place), nbytes); }));
  }

  void set_cache_limit(std::optional<std::size_t> nbytes) const {
    check(unlocked([&] { return pool_->set_cache_limit(nbytes.value_or(SIZE_MAX)); }));
  }

  std::vector<PyLiveBlock> close() const {
    std::vector<LiveBlock> left;
    const int status = unlocked([&] { return pool_->close(&left); });
    if (left.empty()) check(status);
    return as_tuples(left);
  }

  std::string audit() const {
    const py::gil_scoped_release unlocked;
    return pool_->audit();
  }

 private:
  static StreamUse use_of(const PyStream& stream, int home) {
    if (const auto* pair = std::get_if<std::pair<int, std::uintptr_t>>(&stream)) {
      return {pair->first, reinterpret_cast<Stream>(pair->second)};
    }
    return {home, reinterpret_cast<Stream>(std::get<std::uintptr_t>(stream))};
  }

  static std::vector<PyLiveBlock> as_tuples(const std::vector<LiveBlock>& blocks) {
    std::vector<PyLiveBlock> tuples;
    for (const LiveBlock& block : blocks) tuples.emplace_back(block.address, block.requested_nbytes, block.home);
    return tuples;
  }

  void check(int status, const char* message = nullptr) const { poolrt::check(status, *table_, message); }

  const DriverTable* table_;
  std::shared_ptr<Pool> pool_;
};

void leave(int token) {
  check(unlocked([token] { return leave_pool(token); }), host_driver_table()->driver);
}

// The places, in order, of a range that may lie in a block of some pool: (ordinal, or None for the host; bytes). Empty
// where no pool has it.
std::vector<std::pair<OptionalPlace, std::size_t>> extents_at(Address address, std::size_t nbytes) {
  std::vector<std::pair<OptionalPlace, std::size_t>> places;
  if (pool_activity() == 0) return places;
  const py::gil_scoped_release unlocked;
  const Pool* pool = owner_of(address);
  LiveBlock block{};
  std::vector<Piece> pieces;
  if (pool == nullptr || pool->find(address, &block) != kSuccess) return places;
  if (pool->extents(address, &pieces) != kSuccess) return places;
  Address begin = block.address;
  for (const Piece& piece : pieces) {
    const Address end = begin + piece.nbytes;
    const Address from = std::max(begin, address);
    const Address to = std::min(end, address + nbytes);
    const OptionalPlace place = to_python(piece.place);
    if (from < to) places.emplace_back(place ? OptionalPlace(pool->ordinal(*place)) : place, to - from);
    begin = end;
  }
  return places;
}

void take_pair(int slot, const PyPool& pool, int home) {
  check(register_pair(slot, pool.pool(), home), host_driver_table()->driver);
}

void give_back_pair(int slot) {
  check(unlocked([slot] { return unregister_pair(slot); }), host_driver_table()->driver);
}

void bind_stats(py::module_& module) {
  py::class_<TierUse>(module, "TierUse")
      .def_property_readonly("place", [](const TierUse& tier) { return to_python(tier.place); })
      .def_readonly("limit_nbytes", &TierUse::limit_nbytes)
      .def_readonly("mapped_nbytes", &TierUse::mapped_nbytes)
      .def_readonly("peak_nbytes", &TierUse::peak_nbytes);

  py::class_<PoolStats>(module, "PoolStats")
      .def_readonly("tiers", &PoolStats::tiers)
      .def_readonly("live_nbytes", &PoolStats::live_nbytes)
      .def_readonly("cached_nbytes", &PoolStats::cached_nbytes)
      .def_readonly("deferred_nbytes", &PoolStats::deferred_nbytes)
      .def_readonly("requested_nbytes", &PoolStats::requested_nbytes)
      .def_readonly("spilled_nbytes", &PoolStats::spilled_nbytes)
      .def_readonly("condemned_nbytes", &PoolStats::condemned_nbytes)
      .def_readonly("largest_free_nbytes", &PoolStats::largest_free_nbytes)
      .def_readonly("peak_live_nbytes", &PoolStats::peak_live_nbytes)
      .def_readonly("live_blocks", &PoolStats::live_blocks)
      .def_readonly("hits", &PoolStats::hits)
      .def_readonly("misses", &PoolStats::misses)
      .def_readonly("refusals", &PoolStats::refusals)
      .def_readonly("evictions", &PoolStats::evictions)
      .def_readonly("driver_calls", &PoolStats::driver_calls)
      .def_readonly("lost_handles", &PoolStats::lost_handles)
      .def_property_readonly("fragmentation", &PoolStats::fragmentation);
}

}  // namespace

void bind_pool(py::module_& module) {
  constexpr std::size_t kDefaultChunk = std::size_t{64} << 20;
  bind_stats(module);
  py::class_<PyPool>(module, "Pool")
      .def(py::init<const py::object&, const std::vector<std::pair<int, std::size_t>>&, std::size_t, std::size_t,
                    std::optional<std::size_t>, const std::optional<std::vector<std::vector<int>>>&>(),
           py::arg("driver"), py::arg("cards"), py::arg("host_limit_nbytes") = 0,
           py::arg("chunk_nbytes") = kDefaultChunk, py::arg("cache_limit_nbytes") = py::none(),
           py::arg("peers") = py::none())
      .def_property_readonly("number", [](const PyPool& self) { return self.pool()->number(); })
      .def("allocate", &PyPool::allocate, py::arg("nbytes"), py::arg("home"), py::arg("stream") = 0)
      .def("free", &PyPool::free, py::arg("address"), py::arg("streams") = std::vector<PyStream>())
      .def("retain", &PyPool::retain, py::arg("address"))
      .def("find", &PyPool::find, py::arg("address"))
      .def("extents", &PyPool::extents, py::arg("address"))
      .def("home", &PyPool::home, py::arg("address"))
      .def("move", &PyPool::move, py::arg("address"), py::arg("home"))
      .def("stats", &PyPool::stats)
      .def("live", &PyPool::live)
      .def("trim", &PyPool::trim)
      .def("set_limit", &PyPool::set_limit, py::arg("place"), py::arg("nbytes"))
      .def("set_cache_limit", &PyPool::set_cache_limit, py::arg("nbytes"))
      .def("close", &PyPool::close)
      .def("audit", &PyPool::audit);

  module.attr("ALLOCATOR_SLOTS") = kAllocatorSlots;
  module.def(
      "enter_pool", [](const PyPool& pool, OptionalPlace home) { return enter_pool(pool.pool(), from_python(home)); },
      py::arg("pool"), py::arg("home"));
  module.def("leave_pool", &leave, py::arg("token"));
  module.def("register_pair", &take_pair, py::arg("slot"), py::arg("pool"), py::arg("home"));
  module.def("unregister_pair", &give_back_pair, py::arg("slot"));
  module.def("extents_at", &extents_at, py::arg("address"), py::arg("nbytes"));
  module.def("pools_in_use", [] { return pool_activity() != 0; });
  module.def("pool_table_address", [] { return reinterpret_cast<std::uintptr_t>(pool_table()); });
}

}  // namespace poolrt
