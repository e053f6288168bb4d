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
thread_local int entered_count = 0;  // needs no construction, so that asking costs one load

}  // namespace

int enter_pool(std::shared_ptr<Pool> pool, int home) {
  static std::atomic<int> last_token{0};
  const int token = ++last_token;
  entered_here.push_back({token, std::move(pool), home});
  ++entered_count;
  pool_activity().fetch_add(1, std::memory_order_relaxed);
  return token;
}

int leave_pool(int token) {
  if (entered_here.empty() || entered_here.back().token != token) {
    set_pool_message("pools are left in the order opposite to the one they were entered in, by the same thread");
    return kInvalidValue;
  }
  --entered_count;
  pool_activity().fetch_sub(1, std::memory_order_relaxed);
  const Entered left = std::move(entered_here.back());
  entered_here.pop_back();
  return kSuccess;
}

ActivePool active_pool(int ordinal) {
  if (entered_count == 0) return {nullptr, kHostMemory};
  for (auto entered = entered_here.rbegin(); entered != entered_here.rend(); ++entered) {
    Pool* pool = entered->pool.get();
    const int card = entered->home == kHostMemory ? pool->card_of_ordinal(ordinal) : entered->home;
    if (card != kHostMemory && pool->ordinal(card) == ordinal) return {pool, card};
  }
  return {nullptr, kHostMemory};
}

Pool* innermost_pool() { return entered_count == 0 ? nullptr : entered_here.back().pool.get(); }

}  // namespace poolrt
