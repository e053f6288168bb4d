#pragma once

#include <torch/library.h>

namespace poolrt::vcard {

// Operators of aten written for virtual cards, because they make, move, view or rename memory rather than compute.
void register_memory_operators(torch::Library& aten);

// Operators that torch lets each kind of device do in its own way: dropout and attention, done as on the CPU.
void register_model_operators(torch::Library& aten);

// Recurrent layers, with autograd: torch gives the CPU other formulas than other devices, and a card takes the CPU's.
// Under inference mode torch leaves autograd's kernels out, so both libraries get them.
void register_recurrent_operators(torch::Library& autograd, torch::Library& inference);

// CpuKernelOnCard for every other operator of aten that has a CPU kernel.
void register_cpu_kernels(torch::Library& aten);

// The casts of torch.autocast("vcard"): torch's own lists for an accelerator.
void register_autocast(torch::Library& autocast);

}  // namespace poolrt::vcard
