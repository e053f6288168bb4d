// A random generator per card: torch's CPU generator under the name of the card, so that a card and the CPU with the
// same seed draw the same numbers.
#pragma once

#include <ATen/core/Generator.h>

namespace poolrt::vcard {

const at::Generator& default_generator(int card);
at::Generator new_generator(int card);

// The CPU generator inside, for a CPU kernel to draw from.
const at::Generator& cpu_generator(const at::Generator& generator);

}  // namespace poolrt::vcard
