// Recurrent layers: LSTM, GRU, RNN. torch computes them by oneDNN or in pieces of its own on the CPU, and otherwise
// elsewhere. A virtual
// card runs the whole operator on CPU aliases with autograd on, and keeps that CPU graph behind one node of its own:
//
//     card:   x, weights -----------------> [ CpuGraph ] -----> output          forward:  left to right
//                  | alias                       |                 ^
//     CPU:    x, weights --> mkldnn_rnn_layer --> ... --> output --/ adopt       backward: the CPU graph, right to left
//
// Aliases share the version counters of what they alias, so torch still notices a tensor that was changed in between.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "vcard_alias.hpp"
#include "vcard_autocast.hpp"
#include "vcard_card.hpp"
#include "vcard_hazards.hpp"
#include "vcard_operators.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {
namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::variable_list;
using torch::jit::Stack;

// torch counted the owners of a node with std::shared_ptr before it did so inside the node.
using NodePointer = std::decay_t<decltype(torch::autograd::Edge().function)>;

template <typename SomeNode>
NodePointer make_node() {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return std::make_shared<SomeNode>();
  } else {
    return c10::make_intrusive<SomeNode>();
  }
}

class CpuGraph final : public Node {
 public:
  CpuGraph() = default;

  void keep(int card, variable_list leaves, variable_list outputs) {
    card_ = card;
    leaves_ = std::move(leaves);
    outputs_ = std::move(outputs);
  }

  void release_variables() override {
    leaves_.clear();
    outputs_.clear();
  }

  std::string name() const override { return "VirtualCardCpuGraph"; }

 private:
  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(!outputs_.empty(),
                "Trying to backward through the graph a second time (or directly access saved tensors after they have "
                "already been freed). Specify retain_graph=True if you need to backward through the graph a second "
                "time.");
    TORCH_CHECK_NOT_IMPLEMENTED(
        !c10::GradMode::is_enabled(),
        "recurrent layers on a virtual card have first derivatives only; use create_graph=False");
    variable_list outputs;
    variable_list gradient_aliases;
    for (std::size_t i = 0; i < outputs_.size(); ++i) {
      if (!gradients[i].defined()) continue;
      outputs.push_back(outputs_[i]);
      gradient_aliases.push_back(cpu_alias(gradients[i]));
    }
    const BornOn birth(card_);
    variable_list found = torch::autograd::grad(outputs, leaves_, gradient_aliases, /*retain_graph=*/true,
                                                /*create_graph=*/false, /*allow_unused=*/true);
    for (Tensor& gradient : found) {
      if (gradient.defined()) gradient = adopt(std::exchange(gradient, Tensor()), card_);
    }
    return found;
  }

  int card_ = 0;
  variable_list leaves_;   // aliases of the inputs that require gradients, as edges are
  variable_list outputs_;  // those that gradients arrive for
};

// One call: aliases take the arguments' places, the operator runs on them, and what comes out is adopted by the card.
class CallOnCpu {
 public:
  explicit CallOnCpu(Stack& stack) : records_(c10::GradMode::is_enabled()), stack_(stack) {
    for (c10::IValue& value : stack_) {
      if (value.isTensor()) {
        value = alias(value.toTensor());
      } else if (value.isTensorList()) {
        c10::List<Tensor> aliases;
        for (const Tensor& tensor : value.toTensorVector()) aliases.push_back(alias(tensor));
        value = std::move(aliases);
      }
    }
    check_ordinal(card_);
    before_operator(card_);
  }

  void run(const c10::OperatorHandle& op) {
    {
      const BornOn birth(card_);
      const CpuAutocastLikeCards autocast;
      op.callBoxed(stack_);
    }
    const NodePointer node = inputs_.empty() ? nullptr : make_node<CpuGraph>();
    if (node) node->set_next_edges(torch::autograd::collect_next_edges(inputs_));
    variable_list outputs;
    for (c10::IValue& value : stack_) {
      outputs.push_back(std::move(value).toTensor());
      value = adopted(outputs.back(), node);
    }
    if (node) static_cast<CpuGraph&>(*node).keep(card_, std::move(leaves_), std::move(outputs));
  }

 private:
  Tensor alias(const Tensor& tensor) {
    if (!tensor.defined() || tensor.device().type() != kVcard) return tensor;
    if (card_ == kHostMemory) card_ = tensor.device().index();
    TORCH_CHECK(card_ == tensor.device().index(),
                "Expected all tensors to be on the same device, but found at least two devices, ", device_of(card_),
                " and ", tensor.device(), "!");
    if (C10_UNLIKELY(hazards_are_watched())) note_use(tensor, current_stream(card_));
    Tensor alias = cpu_alias(tensor);
    if (records_) share_version(tensor, alias);
    if (records_ && tensor.requires_grad()) {
      alias.set_requires_grad(true);
      inputs_.push_back(tensor);
      leaves_.push_back(alias);
    }
    return alias;
  }

  Tensor adopted(const Tensor& output, const NodePointer& node) const {
    Tensor tensor = adopt(output, card_);
    if (node) {
      share_version(output, tensor);
      torch::autograd::set_history(tensor, node);
    }
    return tensor;
  }

  static void share_version(const Tensor& from, const Tensor& to) {
    torch::autograd::impl::set_version_counter(to, torch::autograd::impl::version_counter(from));
  }

  bool records_;
  Stack& stack_;
  int card_ = kHostMemory;
  variable_list inputs_;  // those that require gradients
  variable_list leaves_;  // and their aliases
};

class RecurrentOnCard final : public c10::OperatorKernel {
 public:
  explicit RecurrentOnCard(const c10::FunctionSchema& schema)
      : states_(schema.argumentIndexWithName("hx")),
        weights_(schema.argumentIndexWithName("params")),
        layers_(schema.argumentIndexWithName("num_layers")),
        dropout_(schema.argumentIndexWithName("dropout")),
        train_(schema.argumentIndexWithName("train")),
        argument_count_(schema.arguments().size()) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    Stack arguments(stack->end() - static_cast<std::ptrdiff_t>(argument_count_), stack->end());
    torch::jit::drop(*stack, argument_count_);
    if (drops_between_layers(arguments)) {
      run_layer_by_layer(op, arguments);
    } else {
      CallOnCpu(arguments).run(op);
    }
    for (c10::IValue& result : arguments) stack->push_back(std::move(result));
  }

 private:
  bool drops_between_layers(const Stack& arguments) const {
    return dropout_ && arguments[*dropout_].toDouble() > 0 && arguments[*train_].toBool() &&
           arguments[*layers_].toInt() > 1;
  }

  // Dropout between layers draws from the card's generator, so it happens on the card.
  void run_layer_by_layer(const c10::OperatorHandle& op, Stack& arguments) const {
    const int64_t layers = arguments[*layers_].toInt();
    const double probability = arguments[*dropout_].toDouble();
    const std::vector<Tensor> weights = arguments[*weights_].toTensorVector();
    const std::size_t per_layer = weights.size() / static_cast<std::size_t>(layers);
    std::vector<std::vector<Tensor>> final_states;
    Tensor output = arguments[0].toTensor();
    for (int64_t layer = 0; layer < layers; ++layer) {
      Stack call = arguments;
      const auto first = weights.begin() + static_cast<std::ptrdiff_t>(per_layer) * layer;
      call[0] = layer == 0 ? output : at::dropout(output, probability, /*train=*/true);
      call[*weights_] = std::vector<Tensor>(first, first + static_cast<std::ptrdiff_t>(per_layer));
      call[*states_] = states_of_layer(arguments[*states_], layer, layers);
      call[*layers_] = int64_t{1};
      call[*dropout_] = 0.0;
      op.callBoxed(call);
      output = call[0].toTensor();
      final_states.resize(call.size() - 1);
      for (std::size_t i = 1; i < call.size(); ++i) final_states[i - 1].push_back(call[i].toTensor());
    }
    arguments = {output};
    for (const std::vector<Tensor>& of_layers : final_states) arguments.emplace_back(at::cat(of_layers));
  }

  // States are (layers x directions, batch, features), in two tensors for LSTM and in one for the others.
  static c10::IValue states_of_layer(const c10::IValue& states, int64_t layer, int64_t layers) {
    const auto slice = [&](const Tensor& state) {
      const int64_t directions = state.size(0) / layers;
      return state.narrow(0, layer * directions, directions);
    };
    if (states.isTensor()) return slice(states.toTensor());
    std::vector<Tensor> slices;
    for (const Tensor& state : states.toTensorVector()) slices.push_back(slice(state));
    return slices;
  }

  std::optional<int> states_;
  std::optional<int> weights_;
  std::optional<int> layers_;
  std::optional<int> dropout_;
  std::optional<int> train_;
  std::size_t argument_count_;
};

}  // namespace

void register_recurrent_operators(torch::Library& autograd, torch::Library& inference) {
  for (const char* name :
       {"lstm.input", "lstm.data", "gru.input", "gru.data", "rnn_tanh.input", "rnn_tanh.data", "rnn_relu.input",
        "rnn_relu.data", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}) {
    const std::string full_name(name);
    const auto dot = full_name.find('.');
    const std::string overload = dot == std::string::npos ? "" : full_name.substr(dot + 1);
    const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow(("aten::" + full_name.substr(0, dot)).c_str(), overload.c_str());
    for (torch::Library* library : {&autograd, &inference}) {
      library->impl(name, torch::CppFunction::makeFromBoxedFunctor(std::make_unique<RecurrentOnCard>(op.schema())));
    }
  }
}

}  // namespace poolrt::vcard
