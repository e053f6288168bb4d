#include "vcard_autocast.hpp"

#include <ATen/autocast_mode.h>

#include "vcard_card.hpp"
#include "vcard_operators.hpp"

namespace poolrt::vcard {

CpuAutocastLikeCards::CpuAutocastLikeCards()
    : outer_enabled_(at::autocast::is_autocast_enabled(at::kCPU)),
      outer_type_(at::autocast::get_autocast_dtype(at::kCPU)) {
  at::autocast::set_autocast_enabled(at::kCPU, at::autocast::is_autocast_enabled(kVcard));
  at::autocast::set_autocast_dtype(at::kCPU, at::autocast::get_autocast_dtype(kVcard));
}

CpuAutocastLikeCards::~CpuAutocastLikeCards() {
  at::autocast::set_autocast_enabled(at::kCPU, outer_enabled_);
  at::autocast::set_autocast_dtype(at::kCPU, outer_type_);
}

void register_autocast(torch::Library& autocast) {
  // torch's macros below register with a library of this name, and name the policies without their namespace.
  torch::Library& m = autocast;
  using namespace at::autocast;
#define POOLRT_LOWER_PRECISION(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define POOLRT_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define POOLRT_FP32_OUTPUT(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define POOLRT_PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(POOLRT_LOWER_PRECISION)
  AT_FORALL_FP32(POOLRT_FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(POOLRT_FP32_OUTPUT)
  AT_FORALL_PROMOTE(POOLRT_PROMOTE)
}

}  // namespace poolrt::vcard
