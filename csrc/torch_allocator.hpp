// Which pool and home each of the function pairs that torch's pluggable allocator can call stands for.
#pragma once

#include <memory>

namespace poolrt {

class Pool;

inline constexpr int kAllocatorSlots = 16;

// kInvalidValue for a slot that is not there, taken already (register) or empty (unregister). Blocks that torch got
// through the pair may be freed through it later, whether it is registered or not.
int register_pair(int slot, std::shared_ptr<Pool> pool, int home);
int unregister_pair(int slot);

}  // namespace poolrt
