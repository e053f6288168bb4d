// The C border of the virtual-card library: loaded once per process by poolrt/virtual_cards/backend.py.
#include <torch/library.h>

#include <exception>
#include <string>

#include "vcard_alias.hpp"
#include "vcard_card.hpp"
#include "vcard_device.hpp"
#include "vcard_engine.hpp"
#include "vcard_generator.hpp"
#include "vcard_hazards.hpp"
#include "vcard_kernel.hpp"
#include "vcard_memory.hpp"
#include "vcard_operators.hpp"

namespace poolrt::vcard {
namespace {

using c10::DispatchKey;

torch::Library& library(torch::Library::Kind kind, const char* name, std::optional<DispatchKey> key) {
  return *new torch::Library(kind, name, key, __FILE__, __LINE__);  // registrations last as long as the process
}

void load(const HostTable* host, const PoolTable* pools) {
  attach(host, pools);
  install_allocators();
  install_hazards();
  install_device();
  torch::Library& aten = library(torch::Library::IMPL, "aten", DispatchKey::PrivateUse1);
  register_memory_operators(aten);
  register_model_operators(aten);
  register_cpu_kernels(aten);
  register_recurrent_operators(library(torch::Library::IMPL, "aten", DispatchKey::AutogradPrivateUse1), aten);
  // _copy_from names no argument as written, so torch's own handlers would resolve the target into a tensor of its own.
  for (const DispatchKey key : {DispatchKey::Conjugate, DispatchKey::Negative}) {
    library(torch::Library::IMPL, "aten", key).impl("_copy_from", torch::CppFunction::makeFallthrough());
  }
  library(torch::Library::IMPL, "_", DispatchKey::PrivateUse1)
      .fallback(torch::CppFunction::makeFromBoxedFunction<&run_unregistered>());
  register_autocast(library(torch::Library::IMPL, "aten", DispatchKey::AutocastPrivateUse1));
  library(torch::Library::IMPL, "_", DispatchKey::AutocastPrivateUse1).fallback(torch::CppFunction::makeFallthrough());
  library(torch::Library::DEF, "vcard", std::nullopt)
      .def("default_generator(int card) -> Generator?",
           [](int64_t card) -> std::optional<at::Generator> { return default_generator(static_cast<int>(card)); })
      // The same memory as a tensor of the host, for libraries that know no virtual cards.
      .def("host_view(Tensor(a) self) -> Tensor(a)", [](const at::Tensor& self) { return cpu_alias(self); })
      .def("hazards() -> str[]", [] { return hazards(); })
      .def("reset_hazards() -> ()", [] { reset_hazards(); });
}

std::string& last_error() {
  static auto* message = new std::string;
  return *message;
}

}  // namespace
}  // namespace poolrt::vcard

#define POOLRT_EXPORT extern "C" __attribute__((visibility("default")))

// 0, or a poolrt::Status with the reason in vcard_last_error().
POOLRT_EXPORT int vcard_load(const poolrt::HostTable* host, const poolrt::PoolTable* pools) {
  using namespace poolrt;
  if (host->table_nbytes != sizeof(HostTable) || host->revision != kHostTableRevision ||
      pools->table_nbytes != sizeof(PoolTable) || pools->revision != kPoolTableRevision) {
    vcard::last_error() = "poolrt._C was built from other sources than the virtual-card backend; reinstall poolrt";
    return kInvalidValue;
  }
  try {
    vcard::load(host, pools);
    return kSuccess;
  } catch (const std::exception& error) {
    vcard::last_error() = error.what();
    return kNotInitialized;
  }
}

POOLRT_EXPORT void vcard_grow_autograd() { poolrt::vcard::grow_autograd(); }
POOLRT_EXPORT const char* vcard_last_error() { return poolrt::vcard::last_error().c_str(); }
POOLRT_EXPORT int vcard_current_card() { return poolrt::vcard::current_card(); }
POOLRT_EXPORT void vcard_set_current_card(int card) { poolrt::vcard::set_current_card(card); }
