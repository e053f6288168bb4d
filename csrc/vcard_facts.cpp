#include "vcard_facts.hpp"

#include <ATen/core/jit_type.h>

#include <algorithm>
#include <set>

namespace poolrt::vcard {
namespace {

Kind kind_of(const c10::TypePtr& type) {
  switch (type->kind()) {
    case c10::TypeKind::OptionalType:
      return kind_of(type->expectRef<c10::OptionalType>().getElementType());
    case c10::TypeKind::TensorType:
      return Kind::kTensor;
    case c10::TypeKind::ListType: {
      const c10::TypePtr& element = type->expectRef<c10::ListType>().getElementType();
      if (kind_of(element) != Kind::kTensor) return Kind::kOther;
      return element->kind() == c10::TypeKind::TensorType ? Kind::kTensorList : Kind::kOptionalTensorList;
    }
    case c10::TypeKind::DeviceObjType:
      return Kind::kDevice;
    case c10::TypeKind::GeneratorType:
      return Kind::kGenerator;
    default:
      return Kind::kOther;
  }
}

// Arguments that torch wants on the host, or takes from there, also for CUDA tensors.
bool host_allowed(const c10::Argument& argument, Kind kind) {
  static const std::set<std::string> read_on_the_host = {"batch_sizes", "lengths", "input_lengths", "target_lengths"};
  return kind == Kind::kOptionalTensorList || read_on_the_host.count(argument.name()) != 0;
}

}  // namespace

OperatorFacts::OperatorFacts(const c10::FunctionSchema& schema)
    : name(schema.name()), draws(false), writes(false), over_lists(name.rfind("aten::_foreach_", 0) == 0) {
  for (const c10::Argument& argument : schema.arguments()) {
    const Kind kind = kind_of(argument.type());
    const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    arguments.push_back({kind, written, host_allowed(argument, kind)});
    draws |= kind == Kind::kGenerator;
    writes |= written;
  }
  for (const c10::Argument& result : schema.returns()) returns.push_back(kind_of(result.type()));
}

bool OperatorFacts::has(Kind kind) const {
  return std::any_of(arguments.begin(), arguments.end(),
                     [kind](const ArgumentFacts& argument) { return argument.kind == kind; });
}

}  // namespace poolrt::vcard
