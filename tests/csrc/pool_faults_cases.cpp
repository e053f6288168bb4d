// A driver that fails, is late, or runs out, at every single call of one long scenario.
#include <set>

#include "pool_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::Fault;
using poolrt::kOutOfMemory;
using poolrt::kSuccess;
using poolrt::Pool;
using poolrt::Stream;

// Blocks that a scenario owns. A status other than success is let through; whatever is granted is filled and checked.
class Owner {
 public:
  Owner(Pool& pool, std::set<int>& statuses) : pool_(pool), statuses_(statuses) {}

  void allocate(std::size_t nbytes, int home) {
    Address address = 0;
    if (note(pool_.allocate(nbytes, home, nullptr, &address)) != kSuccess) {
      EXPECT(address == 0);
      return;
    }
    const auto mark = static_cast<unsigned char>(++last_mark_);
    fill(address, nbytes, mark);
    blocks_.push_back({address, nbytes, mark});
  }

  void free_oldest(const std::vector<poolrt::StreamUse>& uses = {}) {
    if (blocks_.empty()) return;
    check(blocks_.front());
    if (note(pool_.free(blocks_.front().address, uses)) == kSuccess) blocks_.erase(blocks_.begin());
  }

  void move_newest(int home) {
    if (blocks_.empty()) return;
    note(pool_.move(blocks_.back().address, home));
    check(blocks_.back());
  }

  void trim() {
    std::size_t nbytes = 0;
    note(pool_.trim(&nbytes));
  }

  void free_all() {
    while (!blocks_.empty()) free_oldest();
  }

  std::size_t count() const { return blocks_.size(); }

 private:
  struct Filled {
    Address address;
    std::size_t nbytes;
    unsigned char mark;
  };
  static void check(const Filled& block) { EXPECT(holds(block.address, block.nbytes, block.mark)); }
  int note(int status) {
    statuses_.insert(status);
    return status;
  }

  Pool& pool_;
  std::set<int>& statuses_;
  std::vector<Filled> blocks_;
  unsigned last_mark_ = 0;
};

// Small and large blocks, spilling to peers and host, streams, eviction, moving and trimming; over 200 driver calls.
void run_scenario(Owner& owner) {
  for (int round = 0; round < 3; ++round) {
    owner.allocate(3000, 0);
    owner.allocate(9 * kMiB, 0);
    owner.allocate(14 * kMiB, 0);  // over the rim of card 0
    owner.free_oldest({{0, nullptr}});
    owner.allocate(7 * kMiB, 1);
    owner.free_oldest({{0, nullptr}, {1, nullptr}});
    owner.allocate(18 * kMiB, 1);  // cached segments give way, the rest goes to the host
    owner.free_oldest();
    owner.allocate(600 * 1024, 1);
    owner.free_oldest({{1, nullptr}});
    if (round == 1) owner.move_newest(0);  // the only one, because copying takes time
    owner.trim();
    owner.allocate(5 * kMiB, 0);
    owner.free_all();
  }
  owner.trim();
}

std::uint64_t calls_of_a_scenario(const Fault* fault, std::set<int>& statuses) {
  const auto pool = open_pool({16 * kMiB, 16 * kMiB}, 16 * kMiB);
  Owner owner(*pool, statuses);
  const std::uint64_t before = driver_calls();
  if (fault != nullptr) EXPECT_OK(host().set_fault(fault));
  run_scenario(owner);
  const std::uint64_t calls = driver_calls() - before;
  EXPECT_OK(host().clear_fault());
  EXPECT(wrong_with(*pool).empty());
  owner.free_all();
  const std::size_t owned = owner.count();
  EXPECT(owned == 0);
  owner.allocate(20 * kMiB, 0);  // the next request works
  EXPECT(owner.count() == 1);
  owner.free_all();
  close(*pool);
  EXPECT(nothing_is_left());
  EXPECT(ledger(0).used_nbytes == 0 && ledger(1).used_nbytes == 0 && ledger(poolrt::kHostMemory).used_nbytes == 0);
  EXPECT(pool->stats().lost_handles == 0);
  return calls;
}

void sweep(int status, std::uint32_t delay_us, std::uint64_t count, std::uint64_t step) {
  std::set<int> statuses;
  const std::uint64_t calls = calls_of_a_scenario(nullptr, statuses);
  EXPECT(calls >= 200 && statuses == std::set<int>{kSuccess});
  for (std::uint64_t at = 1; at <= calls; at += step) {
    const Fault fault = {at, status, delay_us, count};
    calls_of_a_scenario(&fault, statuses);
  }
  EXPECT(status == kSuccess || status == kOutOfMemory || statuses.count(status) == 1);
}

CASE(every_driver_call_may_fail_once) { sweep(999, 0, 1, 1); }
CASE(every_driver_call_may_fail_three_times) { sweep(poolrt::kInvalidValue, 0, 3, 3); }
CASE(every_driver_call_may_run_out) { sweep(kOutOfMemory, 0, 1, 1); }
CASE(a_driver_may_run_out_for_long) { sweep(kOutOfMemory, 0, 40, 7); }
CASE(every_driver_call_may_be_late) { sweep(kSuccess, 100, 1, 5); }

CASE(opening_may_fail_at_every_call) {
  configure({16 * kMiB, 16 * kMiB});
  for (std::uint64_t at = 1; at <= 3; ++at) {
    const Fault fault = {at, 999, 0, 1};
    EXPECT_OK(host().set_fault(&fault));
    int status = kSuccess;
    const auto pool = Pool::open(driver(), options_of({16 * kMiB, 16 * kMiB}, 16 * kMiB), &status);
    EXPECT_OK(host().clear_fault());
    EXPECT(pool == nullptr && status == 999);
  }
}

// What the driver does not take back stays counted, and goes with the next trim.
CASE(what_resists_is_condemned_and_tried_again) {
  const auto pool = open_pool({16 * kMiB});
  EXPECT_OK(pool->free(grant(*pool, 8 * kMiB, 0)));
  const Fault fault = {2, 999, 0, 1};  // the drain, and then the unmapping
  EXPECT_OK(host().set_fault(&fault));
  std::size_t nbytes = 1;
  EXPECT(pool->trim(&nbytes) == 999 && nbytes == 0 && pool->stats().condemned_nbytes == 8 * kMiB);
  EXPECT_OK(host().clear_fault());
  EXPECT(wrong_with(*pool).empty());
  EXPECT_OK(pool->trim(&nbytes));
  EXPECT(nbytes == 8 * kMiB && pool->stats().condemned_nbytes == 0 && page_state().mapped_nbytes == 0);
}

}  // namespace
