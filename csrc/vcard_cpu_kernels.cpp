// Which operators of aten get CpuKernelOnCard.
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "vcard_kernel.hpp"
#include "vcard_operators.hpp"

namespace poolrt::vcard {
namespace {

using c10::DispatchKey;

// Written by hand, or composed by torch from operators that are.
constexpr std::array kElsewhere = {
    "aten::copy_",     "aten::_to_copy", "aten::to",         "aten::_pin_memory",
    "aten::is_pinned", "aten::lift",     "aten::lift_fresh", "aten::_pack_padded_sequence",
};

// Kinds of tensors that a virtual card does not hold.
constexpr std::array kForeignTensors = {"sparse", "quantize", "mkldnn", "nested", "_cudnn", "vulkan"};

bool computes_on_cpu(const c10::OperatorHandle& op) {
  if (op.hasKernelForDispatchKey(DispatchKey::CPU)) return true;
  // A composite kernel is run as a whole on the CPU alias, which saves a detour per operator inside it. One that
  // autograd looks into has to stay in pieces.
  return !op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd) &&
         (op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) ||
          op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutogradNonFunctional));
}

bool makes_views_only(const c10::OperatorHandle& op) {
  const auto& results = op.schema().returns();
  return !op.hasKernelForDispatchKey(DispatchKey::CPU) && !results.empty() &&
         std::all_of(results.begin(), results.end(), [](const c10::Argument& result) {
           return result.alias_info() != nullptr && !result.alias_info()->isWrite();
         });
}

bool wanted(const c10::OperatorHandle& op) {
  const std::string& name = op.operator_name().name;
  if (name.rfind("aten::", 0) != 0 || !op.hasSchema() || op.hasKernelForDispatchKey(DispatchKey::PrivateUse1)) {
    return false;
  }
  if (std::any_of(kElsewhere.begin(), kElsewhere.end(), [&](const char* other) { return name == other; })) return false;
  if (std::any_of(kForeignTensors.begin(), kForeignTensors.end(),
                  [&](const char* kind) { return name.find(kind) != std::string::npos; })) {
    return false;
  }
  if (!computes_on_cpu(op) || makes_views_only(op)) return false;
  const OperatorFacts facts(op.schema());
  const bool takes_tensors =
      facts.has(Kind::kTensor) || facts.has(Kind::kTensorList) || facts.has(Kind::kOptionalTensorList);
  if (takes_tensors && facts.has(Kind::kDevice)) return false;  // empty_like and such may name another device
  // Without a generator argument the CPU kernel would draw from the CPU's own generator.
  return facts.draws || !op.hasTag(at::Tag::nondeterministic_seeded);
}

}  // namespace

void register_cpu_kernels(torch::Library& aten) {
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || !wanted(*op)) continue;
    const std::string full_name = name.name + (name.overload_name.empty() ? "" : "." + name.overload_name);
    aten.impl(full_name.c_str(),
              torch::CppFunction::makeFromBoxedFunctor(std::make_unique<CpuKernelOnCard>(op->schema())));
  }
}

}  // namespace poolrt::vcard
