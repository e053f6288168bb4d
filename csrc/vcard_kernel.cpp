#include "vcard_kernel.hpp"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_map>
#include <utility>

#include "vcard_alias.hpp"
#include "vcard_card.hpp"
#include "vcard_foreach.hpp"
#include "vcard_generator.hpp"
#include "vcard_hazards.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {
namespace {

const c10::StorageImpl* storage_impl(const at::Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl();
}

// One call of one operator: [1] arguments in, [2] the CPU kernel, [3] written arguments followed, [4] results out.
class Call {
 public:
  Call(const OperatorFacts& facts, torch::jit::Stack& stack) : facts_(facts), stack_(stack) {}

  void run(const c10::OperatorHandle& op) {
    take_arguments();  // [1]
    check_devices();
    if (C10_UNLIKELY(hazards_are_watched())) take_turn();
    if (facts_.draws) give_generators();
    {
      const BornOn birth(card_);
      const c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKeySet(c10::DispatchKey::AutocastCPU));
      op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack_);  // [2]
    }
    if (facts_.writes) {  // [3]
      for (const Pair& pair : pairs_) {
        if (pair.written) follow_writes(pair.alias, pair.tensor);
      }
    }
    give_results();  // [4]
  }

 private:
  struct Pair {
    at::Tensor tensor;
    at::Tensor alias;
    bool written;
  };

  // Overlapping arguments are few and come first; a list of hundreds of parameters is not searched.
  static constexpr std::size_t kSearched = 8;
  static constexpr int kUnknown = -1;

  void take_arguments() {
    const std::size_t count = facts_.arguments.size();
    const std::size_t first = stack_.size() - count;
    for (std::size_t i = 0; i < count; ++i) {
      c10::IValue& value = stack_[first + i];
      if (!value.isNone()) take(value, facts_.arguments[i]);
    }
    if (card_ == kUnknown) card_ = current_card();
  }

  void take(c10::IValue& value, const ArgumentFacts& argument) {
    switch (argument.kind) {
      case Kind::kTensor:
        value = alias_of(std::move(value).toTensor(), argument);
        break;
      case Kind::kTensorList:
        value = aliases_of<at::Tensor>(std::move(value).toTensorList(), argument);
        break;
      case Kind::kOptionalTensorList:
        value = aliases_of<std::optional<at::Tensor>>(std::move(value).toOptionalTensorList(), argument);
        break;
      case Kind::kDevice:
        take_device(value);
        break;
      default:
        break;
    }
  }

  void take_device(c10::IValue& value) {
    const c10::Device device = value.toDevice();
    if (device.type() != kVcard) return;
    if (card_ == kUnknown && device.has_index()) card_ = device.index();
    value = c10::Device(c10::kCPU);
  }

  template <typename Element>
  c10::List<Element> aliases_of(const c10::List<Element>& tensors, const ArgumentFacts& argument) {
    c10::List<Element> aliases;
    aliases.reserve(tensors.size());
    pairs_.reserve(pairs_.size() + tensors.size());
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      Element tensor = tensors.get(i);
      if constexpr (std::is_same_v<Element, at::Tensor>) {
        aliases.push_back(alias_of(std::move(tensor), argument));
      } else {
        aliases.push_back(tensor ? Element(alias_of(std::move(*tensor), argument)) : Element());
      }
    }
    return aliases;
  }

  at::Tensor alias_of(at::Tensor tensor, const ArgumentFacts& argument) {
    if (!tensor.defined()) return tensor;
    const c10::Device device = tensor.device();
    if (C10_UNLIKELY(device.type() != kVcard)) {
      see_stranger(tensor, device, argument);
      return tensor;
    }
    check_strided(tensor);
    if (card_ == kUnknown) card_ = device.index();
    if (C10_UNLIKELY(card_ != device.index())) raise_mixed(device);
    at::Tensor alias = cpu_alias(tensor, alias_sharing_storage(tensor));
    pairs_.push_back({std::move(tensor), alias, argument.written});
    return alias;
  }

  void check_strided(const at::Tensor& tensor) const {
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == c10::kStrided && tensor.has_storage() && !tensor.is_quantized(),
                                facts_.name, ": a virtual card holds plain strided tensors only, not ", tensor.layout(),
                                " ones of type ", tensor.dtype());
  }

  const at::Tensor* alias_sharing_storage(const at::Tensor& tensor) const {
    const std::size_t searched = std::min(pairs_.size(), kSearched);
    for (std::size_t i = 0; i < searched; ++i) {
      if (storage_impl(pairs_[i].tensor) == storage_impl(tensor)) return &pairs_[i].alias;
    }
    return nullptr;
  }

  // A CPU tensor of no dimensions counts as a number, as it does on every device of torch.
  void see_stranger(const at::Tensor& tensor, c10::Device device, const ArgumentFacts& argument) {
    const bool is_number = device.is_cpu() && tensor.dim() == 0 && !argument.written;
    if (!is_number && !(device.is_cpu() && argument.host_allowed)) stranger_ = device;
  }

  void check_devices() const {
    check_ordinal(card_);
    if (C10_UNLIKELY(stranger_.has_value() && !pairs_.empty())) raise_mixed(*stranger_);
  }

  // Comes after what is in the current stream; on GPUs it would be queued there.
  void take_turn() const {
    const c10::Stream stream = current_stream(card_);
    drain_stream(stream);
    for (const Pair& pair : pairs_) note_use(pair.tensor, stream);
    if (facts_.name == "aten::_local_scalar_dense") note_finished(stream);  // what item() is: the program waits
  }

  [[noreturn]] void raise_mixed(c10::Device other) const {
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ",
                device_of(card_), " and ", other, "! (when checking arguments of ", facts_.name, ")");
  }

  void give_generators() {
    const std::size_t count = facts_.arguments.size();
    const std::size_t first = stack_.size() - count;
    for (std::size_t i = 0; i < count; ++i) {
      if (facts_.arguments[i].kind != Kind::kGenerator) continue;
      c10::IValue& value = stack_[first + i];
      if (value.isNone()) {
        value = cpu_generator(default_generator(card_));
      } else if (const at::Generator generator = value.toGenerator(); generator.device().type() == kVcard) {
        value = cpu_generator(generator);
      }
    }
  }

  void give_results() {
    const std::size_t count = facts_.returns.size();
    const std::size_t first = stack_.size() - count;
    for (std::size_t i = 0; i < count; ++i) {
      c10::IValue& value = stack_[first + i];
      if (value.isTensor()) {
        value = card_tensor_of(value.toTensor());
      } else if (value.isTensorList()) {
        const c10::List<at::Tensor> results = value.toTensorList();
        c10::List<at::Tensor> tensors;
        tensors.reserve(results.size());
        for (std::size_t j = 0; j < results.size(); ++j) tensors.push_back(card_tensor_of(results.get(j)));
        value = std::move(tensors);
      }
    }
  }

  // An argument given back, a view of an argument, or something new.
  at::Tensor card_tensor_of(const at::Tensor& result) const {
    if (!result.defined()) return result;
    check_strided(result);
    if (result.unsafeGetTensorImpl()->unsafe_storage().use_count() != 1) {
      for (const Pair& pair : pairs_) {
        if (pair.alias.is_same(result)) return pair.tensor;
      }
      for (const Pair& pair : pairs_) {
        if (storage_impl(pair.alias) == storage_impl(result)) return card_view(result, pair.tensor.storage());
      }
    }
    return adopt(result, card_);
  }

  const OperatorFacts& facts_;
  torch::jit::Stack& stack_;
  c10::SmallVector<Pair, 4> pairs_;
  int card_ = kUnknown;
  std::optional<c10::Device> stranger_;
};

}  // namespace

void CpuKernelOnCard::operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  if (C10_UNLIKELY(facts_.over_lists && lists_span_devices(facts_, *stack))) {
    run_element_by_element(op, facts_, *stack);
  } else {
    Call(facts_, *stack).run(op);
  }
}

void run_unregistered(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  // An operator may be defined anew under its old name with other arguments, so the schema is compared too.
  struct Known {
    c10::FunctionSchema schema;
    OperatorFacts facts;
  };
  static auto* known = new std::unordered_map<c10::OperatorName, std::shared_ptr<const Known>>;
  static auto* mutex = new std::shared_mutex;
  std::shared_ptr<const Known> entry;
  {
    const std::shared_lock reading(*mutex);
    if (const auto found = known->find(op.operator_name()); found != known->end()) entry = found->second;
  }
  if (!entry || !(entry->schema == op.schema())) {
    entry = std::make_shared<const Known>(Known{op.schema(), OperatorFacts(op.schema())});
    const std::unique_lock writing(*mutex);
    (*known)[op.operator_name()] = entry;
  }
  Call(entry->facts, *stack).run(op);
}

}  // namespace poolrt::vcard
