// Moving a block: the addresses and the bytes stay, the pages change.
#include <atomic>
#include <thread>

#include "pool_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::kHostMemory;
using Pieces = std::vector<poolrt::Piece>;

CASE(a_block_moves_in_place) {
  const auto pool = open_pool({64 * kMiB, 32 * kMiB}, 64 * kMiB);
  const Address block = grant(*pool, 40 * kMiB, 0);
  fill(block, 40 * kMiB, 5);
  EXPECT_OK(pool->move(block, 1));
  EXPECT(extents_of(*pool, block) == (Pieces{{1, 32 * kMiB}, {0, 8 * kMiB}}));
  EXPECT(holds(block, 40 * kMiB, 5) && wrong_with(*pool).empty());
  poolrt::LiveBlock now{};
  EXPECT_OK(pool->find(block, &now));
  EXPECT(now.home == 1 && now.device == 0);  // what its tensor says stays
  EXPECT(ledger(0).used_nbytes == 8 * kMiB && ledger(1).used_nbytes == 32 * kMiB);
  EXPECT(pool->stats().spilled_nbytes == 8 * kMiB);
  EXPECT_OK(pool->move(block, 0));
  EXPECT(extents_of(*pool, block) == (Pieces{{0, 40 * kMiB}}) && pool->stats().spilled_nbytes == 0);
  EXPECT(holds(block, 40 * kMiB, 5));
  EXPECT_OK(pool->free(block));
  close(*pool);
  EXPECT(nothing_is_left());
}

CASE(a_spilled_block_comes_home_when_there_is_room) {
  const auto pool = open_pool({16 * kMiB, 16 * kMiB});
  const Address first = grant(*pool, 10 * kMiB, 0);
  const Address block = grant(*pool, 12 * kMiB, 0);
  fill(block, 12 * kMiB, 6);
  EXPECT(pool->stats().spilled_nbytes == 6 * kMiB);
  EXPECT_OK(pool->free(first));
  EXPECT(pool->move(block, 0) == poolrt::kSuccess && pool->stats().spilled_nbytes == 2 * kMiB);  // 10 + 2: the old
  EXPECT(pool->move(block, 0) == poolrt::kSuccess && pool->stats().spilled_nbytes > 0);          // ones were in the way
  EXPECT(holds(block, 12 * kMiB, 6) && wrong_with(*pool).empty());
  EXPECT_OK(pool->free(block));
}

CASE(at_home_already_costs_nothing) {
  const auto pool = open_pool({16 * kMiB});
  const Address block = grant(*pool, 12 * kMiB, 0);
  const std::uint64_t before = driver_calls();
  EXPECT_OK(pool->move(block, 0));
  EXPECT(driver_calls() == before);
  EXPECT(pool->move(block, 1) == poolrt::kInvalidDevice && pool->move(block + 512, 0) == poolrt::kNotFound);
  EXPECT_OK(pool->free(block));
}

CASE(a_small_block_moves_only_if_it_is_alone) {
  const auto pool = open_pool({16 * kMiB, 16 * kMiB});
  const Address a = grant(*pool, 1000, 0);
  const Address b = grant(*pool, 1000, 0);
  fill(a, 1000, 1);
  EXPECT(pool->move(a, 1) == poolrt::kNotSupported);
  EXPECT_OK(pool->free(b));
  EXPECT_OK(pool->move(a, 1));
  EXPECT(extents_of(*pool, a) == (Pieces{{1, 1024}}) && holds(a, 1000, 1));
  EXPECT(wrong_with(*pool).empty());
  EXPECT(grant(*pool, 1000, 1) == a + 1024);  // its holes moved with it
  EXPECT(ledger(0).used_nbytes == 0);
  EXPECT_OK(pool->free(a));
  EXPECT_OK(pool->free(a + 1024));
}

CASE(without_room_nothing_moves) {
  const auto pool = open_pool({16 * kMiB, 8 * kMiB});
  const Address block = grant(*pool, 12 * kMiB, 0);
  fill(block, 12 * kMiB, 2);
  EXPECT(pool->move(block, 1) == poolrt::kSuccess);  // 8 there and 4 here
  EXPECT(extents_of(*pool, block) == (Pieces{{1, 8 * kMiB}, {0, 4 * kMiB}}));
  const Address rest = grant(*pool, 10 * kMiB, 0);
  const Pieces before = extents_of(*pool, block);
  EXPECT(pool->move(block, 0) == poolrt::kOutOfMemory);
  EXPECT(extents_of(*pool, block) == before && holds(block, 12 * kMiB, 2) && wrong_with(*pool).empty());
  EXPECT_OK(pool->free(rest));
  EXPECT_OK(pool->free(block));
}

// A move that fails at any of its driver calls leaves the block as it was, readable and writable.
CASE(a_move_that_fails_changes_nothing) {
  const auto pool = open_pool({32 * kMiB, 8 * kMiB}, 32 * kMiB);
  const Address block = grant(*pool, 12 * kMiB, 0);
  std::uint64_t at = 1;
  int failures = 0;
  for (bool moved = false; !moved; ++at) {
    fill(block, 12 * kMiB, static_cast<unsigned char>(at));
    const poolrt::Fault fault = {at, 999, 0, 1};
    const std::uint64_t before = driver_calls();
    EXPECT_OK(host().set_fault(&fault));
    moved = pool->move(block, 1) == poolrt::kSuccess;
    EXPECT_OK(host().clear_fault());
    EXPECT(holds(block, 12 * kMiB, static_cast<unsigned char>(at)));
    fill(block, 12 * kMiB, 1);
    EXPECT(wrong_with(*pool).empty());
    poolrt::LiveBlock now{};
    EXPECT_OK(pool->find(block, &now));
    EXPECT(now.home == (moved ? 1 : 0));
    if (!moved) ++failures;
    if (moved && driver_calls() - before >= at) {  // the fault fell into the clean-up: back, and on to the next call
      EXPECT_OK(pool->move(block, 0));
      moved = false;
    }
    EXPECT(at < 200);
  }
  EXPECT(failures >= 8);
  std::size_t nbytes = 0;
  EXPECT_OK(pool->trim(&nbytes));
  EXPECT(page_state().mapped_nbytes == 12 * kMiB);
  EXPECT_OK(pool->free(block));
  close(*pool);
  EXPECT(nothing_is_left());
}

// Others allocate and free, also in the very segment, while a block goes back and forth.
CASE(others_work_while_a_block_moves) {
  const auto pool = open_pool({32 * kMiB, 32 * kMiB});
  const Address block = grant(*pool, 6 * kMiB, 0);
  fill(block, 6 * kMiB, 8);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      const Address small = grant(*pool, 4096, 1);
      const Address large = grant(*pool, 4 * kMiB, 0);
      EXPECT(pool->audit().empty());
      EXPECT_OK(pool->free(small));
      EXPECT_OK(pool->free(large));
    }
  });
  for (int i = 0; i < 30; ++i) {
    EXPECT_OK(pool->move(block, i % 2 == 0 ? 1 : 0));
    EXPECT(holds(block, 6 * kMiB, 8));
  }
  stop = true;
  other.join();
  EXPECT_OK(pool->free(block));
  EXPECT(wrong_with(*pool).empty());
}

}  // namespace
