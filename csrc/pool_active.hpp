// Which pool the allocations of this thread come from: the innermost that was entered and not left.
#pragma once

#include <memory>

#include "driver.hpp"

namespace poolrt {

class Pool;

struct ActivePool {
  Pool* pool;
  int home;  // a card of the pool, or kHostMemory for "the card that is asked for"
};

// A token for leave_pool. The pool is kept until then.
int enter_pool(std::shared_ptr<Pool> pool, int home);
int leave_pool(int token);  // kInvalidValue unless the token is that of this thread's innermost pool

const ActivePool* active_pool();  // null outside of any

}  // namespace poolrt
