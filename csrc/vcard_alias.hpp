// One piece of memory under two names: a card's tensor seen by a CPU kernel, and a CPU kernel's result seen as a
// card's tensor. Nothing is copied.
//
//     card's tensor --> storage --\                             the two storages are separate owners, because a kernel
//                                  block (counts its owners)     may make views of, resize or keep what it was given
//     CPU alias ------> storage --/
#pragma once

#include <ATen/core/Tensor.h>

namespace poolrt::vcard {

// A CPU tensor on the memory of `tensor`. Given the alias of a tensor with the same storage, it shares that alias's
// storage, so that a kernel still sees that its two arguments overlap.
at::Tensor cpu_alias(const at::Tensor& tensor, const at::Tensor* sibling_alias = nullptr);

// A card's tensor with the geometry of `result` on `storage`.
at::Tensor card_view(const at::Tensor& result, c10::Storage storage);

// A card's tensor made of a CPU kernel's fresh result. Memory that was born elsewhere is copied to the card.
at::Tensor adopt(const at::Tensor& result, int card);

// After a kernel wrote to `alias`: takes over a changed size, and memory that the kernel allocated anew.
void follow_writes(const at::Tensor& alias, const at::Tensor& tensor);

}  // namespace poolrt::vcard
