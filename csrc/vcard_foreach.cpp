#include "vcard_foreach.hpp"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <cstddef>
#include <utility>
#include <vector>

namespace poolrt::vcard {
namespace {

using torch::jit::Stack;
using Values = c10::List<c10::IValue>;

// The lists of one call have one element per tensor: tensors, or numbers to go with them.
bool goes_by_element(const c10::IValue& value, std::size_t elements) {
  return value.isList() && value.toList().size() == elements;
}

c10::IValue element(const c10::IValue& value, std::size_t index) {
  const Values all = value.toList();
  Values one(all.elementType());
  one.push_back(all.get(index));
  return one;
}

}  // namespace

bool lists_span_devices(const OperatorFacts& facts, const Stack& stack) {
  const std::size_t count = facts.arguments.size();
  const std::size_t first = stack.size() - count;
  std::optional<c10::Device> device;
  for (std::size_t i = 0; i < count; ++i) {
    if (facts.arguments[i].kind != Kind::kTensorList || !stack[first + i].isTensorList()) continue;
    const c10::ArrayRef<c10::IValue> list = stack[first + i].toListRef();
    if (list.size() < 2) return false;  // as element by element as can be: mixed devices are an error now
    for (const c10::IValue& value : list) {
      const c10::Device found = value.toTensor().device();
      if (device && *device != found) return true;
      device = found;
    }
  }
  return false;
}

void run_element_by_element(const c10::OperatorHandle& op, const OperatorFacts& facts, Stack& stack) {
  const auto count = static_cast<std::ptrdiff_t>(facts.arguments.size());
  const Stack arguments(stack.end() - count, stack.end());
  torch::jit::drop(stack, static_cast<std::size_t>(count));
  const std::size_t elements = arguments.front().toList().size();
  std::vector<c10::List<at::Tensor>> results(facts.returns.size());
  for (std::size_t index = 0; index < elements; ++index) {
    Stack call;
    for (const c10::IValue& value : arguments) {
      call.push_back(goes_by_element(value, elements) ? element(value, index) : value);
    }
    op.callBoxed(call);
    for (std::size_t i = 0; i < results.size(); ++i) results[i].push_back(call[i].toTensorList().get(0));
  }
  for (c10::List<at::Tensor>& list : results) stack.emplace_back(std::move(list));
}

}  // namespace poolrt::vcard
