// The kernel behind almost every operator of a virtual card: the operator's CPU kernel on the same memory.
//
//     card tensors --alias--> CPU tensors --CPU kernel--> CPU results --adopt--> card tensors
//                                            (allocates on the card)
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <memory>

#include "vcard_facts.hpp"

namespace poolrt::vcard {

class CpuKernelOnCard final : public c10::OperatorKernel {
 public:
  explicit CpuKernelOnCard(const c10::FunctionSchema& schema) : facts_(schema) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

 private:
  OperatorFacts facts_;
};

// For operators that no kernel was registered for: users' own, and those defined after the backend was loaded.
void run_unregistered(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace poolrt::vcard
