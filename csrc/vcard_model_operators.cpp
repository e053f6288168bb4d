// Dropout and attention: torch lets each kind of device choose its own way, and a virtual card takes the CPU's.
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_ops.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones_like.h>

#include "vcard_operators.hpp"

namespace poolrt::vcard {
namespace {

using at::Tensor;

// The CPU's native_dropout draws from the CPU's default generator; this one draws from the card's, with the same
// operations in the same order.
std::tuple<Tensor, Tensor> native_dropout(const Tensor& input, double p, std::optional<bool> train) {
  if (input.numel() == 0) return {input, at::empty_like(input, input.options())};
  if (train.has_value() && !*train) return {input.clone(), at::ones_like(input, input.options().dtype(at::kBool))};
  const double scale = p == 1 ? 0.0 : 1.0 / (1.0 - p);
  const Tensor mask = at::empty_like(input, input.options().dtype(at::kBool)).bernoulli_(1 - p);
  return {input.mul(mask).mul_(scale), mask};
}

// The choice reads shapes, types and flags only, so the CPU's own serves: flash attention for the CPU where it would
// take it, else the math path. Same kernels, hence the same bits and the same memory.
int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value, const std::optional<Tensor>& mask,
                         double dropout_p, bool is_causal, std::optional<double> scale, bool enable_gqa) {
  return at::_ops::_fused_sdp_choice::redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), query, key, value, mask,
                                                 dropout_p, is_causal, scale, enable_gqa);
}

}  // namespace
}  // namespace poolrt::vcard

namespace at::native {

// torch's macro names the stub without its namespace.
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &poolrt::vcard::choose_attention)

}  // namespace at::native

namespace poolrt::vcard {

void register_model_operators(torch::Library& aten) {
  aten.impl("native_dropout", TORCH_FN(native_dropout));
  aten.impl("_fused_sdp_choice", TORCH_FN(choose_attention));
}

}  // namespace poolrt::vcard
