// Which pool the allocations of this thread on a card come from: the innermost that was entered for that card.
#pragma once

#include <memory>

#include "driver.hpp"

namespace poolrt {

class Pool;

struct ActivePool {
  Pool* pool;
  int home;  // a card of the pool
};

// A token for leave_pool. The pool is kept until then. `home` is the card of the pool whose allocations are meant;
// kHostMemory means each of its cards.
int enter_pool(std::shared_ptr<Pool> pool, int home);
int leave_pool(int token);  // kInvalidValue unless the token is that of this thread's innermost pool

// The pool for what is allocated on the card that the driver numbers `ordinal`; none if its `pool` is null.
ActivePool active_pool(int ordinal);

Pool* innermost_pool();  // of this thread; null outside

}  // namespace poolrt
