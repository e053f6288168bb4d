// Operators over lists of tensors, such as torch._foreach_add. Their lists may span cards: torch then works element by
// element on every kind of device, and so does a virtual card.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include "vcard_facts.hpp"

namespace poolrt::vcard {

// Whether the tensors in the lists among the operator's arguments, on top of the stack, are on more than one device.
bool lists_span_devices(const OperatorFacts& facts, const torch::jit::Stack& stack);

// Calls the operator once per element, with lists of one, and joins what comes out.
void run_element_by_element(const c10::OperatorHandle& op, const OperatorFacts& facts, torch::jit::Stack& stack);

}  // namespace poolrt::vcard
