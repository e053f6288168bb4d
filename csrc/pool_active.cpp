#include "pool_active.hpp"

#include <atomic>
#include <utility>
#include <vector>

#include "pool.hpp"
#include "pool_message.hpp"
#include "pool_registry.hpp"

namespace poolrt {
namespace {

struct Entered {
  int token;
  std::shared_ptr<Pool> pool;
  int home;
};

thread_local std::vector<Entered> entered_here;

struct Span {
  const Entered* first;
  const Entered* end;
};

// Where they are. Every allocation asks, and in this model of thread storage asking is one load; 16 bytes are little
// enough of what libraries opened at run time may have of it.
__attribute__((tls_model("initial-exec"))) thread_local Span pools_here{nullptr, nullptr};

void look_again() { pools_here = {entered_here.data(), entered_here.data() + entered_here.size()}; }

}  // namespace

int enter_pool(std::shared_ptr<Pool> pool, int home) {
  static std::atomic<int> last_token{0};
  const int token = ++last_token;
  entered_here.push_back({token, std::move(pool), home});
  look_again();
  pool_activity().fetch_add(1, std::memory_order_relaxed);
  return token;
}

int leave_pool(int token) {
  if (entered_here.empty() || entered_here.back().token != token) {
    set_pool_message("pools are left in the order opposite to the one they were entered in, by the same thread");
    return kInvalidValue;
  }
  pool_activity().fetch_sub(1, std::memory_order_relaxed);
  const Entered left = std::move(entered_here.back());
  entered_here.pop_back();
  look_again();
  return kSuccess;
}

ActivePool active_pool(int ordinal) {
  for (const Entered* entered = pools_here.end; entered != pools_here.first;) {
    --entered;
    Pool* pool = entered->pool.get();
    const int card = entered->home == kHostMemory ? pool->card_of_ordinal(ordinal) : entered->home;
    if (card != kHostMemory && pool->ordinal(card) == ordinal) return {pool, card};
  }
  return {nullptr, kHostMemory};
}

Pool* innermost_pool() { return pools_here.end == pools_here.first ? nullptr : pools_here.end[-1].pool.get(); }

}  // namespace poolrt
