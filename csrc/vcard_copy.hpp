// Copies between a card and the host and between cards, each over its link.
#pragma once

#include <ATen/core/Tensor.h>

namespace poolrt::vcard {

// As Tensor.copy_ on GPUs: with `non_blocking`, a contiguous copy without a cast is queued in the card's current stream
// if that is a side stream; between two cards in the source's, with the target's waiting before and after. Everything
// else waits for those streams and is done at once, for as long as the link takes.
void copy_over_link(const at::Tensor& source, const at::Tensor& target, bool non_blocking);

}  // namespace poolrt::vcard
