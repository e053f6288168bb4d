// Several threads, each filling its blocks with a mark of its own and checking it before the block goes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "pool_active.hpp"
#include "pool_cases.hpp"
#include "pool_table.hpp"

namespace {

using poolrt::Address;
using poolrt::Pool;

struct Filled {
  Address address;
  std::size_t nbytes;
  unsigned char mark;
};

std::size_t size_from(std::mt19937& random) {
  switch (random() % 4) {
    case 0:
      return 1 + random() % 2000;
    case 1:
      return 1 + random() % kMiB;
    case 2:
      return kMiB + random() % (4 * kMiB);
    default:
      return kMiB + random() % (20 * kMiB);
  }
}

void work(Pool& pool, int number, int operations, std::atomic<int>& refusals) {
  std::mt19937 random(number);
  std::vector<Filled> blocks;
  const auto free_one = [&](std::size_t index) {
    const Filled block = blocks[index];
    EXPECT(holds(block.address, block.nbytes, block.mark));
    std::vector<poolrt::StreamUse> uses;
    if (random() % 3 == 0) uses.push_back({static_cast<int>(random() % 2), nullptr});
    EXPECT_OK(pool.free(block.address, uses));
    blocks[index] = blocks.back();
    blocks.pop_back();
  };
  for (int i = 0; i < operations; ++i) {
    if (!blocks.empty() && random() % 2 == 0) {
      free_one(random() % blocks.size());
      continue;
    }
    if (random() % 50 == 0 && !blocks.empty()) {
      const int status = pool.move(blocks.back().address, static_cast<int>(random() % 2));
      EXPECT(status == poolrt::kSuccess || status == poolrt::kNotSupported || status == poolrt::kOutOfMemory);
      continue;
    }
    const std::size_t nbytes = size_from(random);
    Address address = 0;
    const int status = pool.allocate(nbytes, static_cast<int>(random() % 2), nullptr, &address);
    if (status == poolrt::kOutOfMemory) {
      ++refusals;
      continue;
    }
    EXPECT_OK(status);
    const auto mark = static_cast<unsigned char>(16 * number + i % 16);
    fill(address, nbytes, mark);
    blocks.push_back({address, nbytes, mark});
    if (random() % 200 == 0) {
      std::size_t trimmed = 0;
      EXPECT_OK(pool.trim(&trimmed));
    }
  }
  while (!blocks.empty()) free_one(0);
}

CASE(threads_share_a_pool) {
  const auto pool = open_pool({48 * kMiB, 32 * kMiB}, 16 * kMiB);
  std::atomic<int> refusals{0};
  std::vector<std::thread> threads;
  for (int number = 1; number <= 4; ++number) {
    threads.emplace_back([&, number] { work(*pool, number, 1500, refusals); });
  }
  std::atomic<bool> stop{false};
  std::thread watching([&] {
    while (!stop) EXPECT(wrong_with(*pool).empty());
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  watching.join();
  EXPECT(refusals > 0 && pool->stats().evictions > 0 && pool->stats().hits > 0);
  EXPECT(pool->stats().live_nbytes == 0 && wrong_with(*pool).empty());
  close(*pool);
  EXPECT(nothing_is_left());
}

CASE(threads_free_the_last_blocks_of_a_pool_that_is_gone) {
  for (int round = 0; round < 50; ++round) {
    auto pool = open_pool({16 * kMiB});
    EXPECT_OK(pool->set_cache_limit(2 * kMiB));
    Pool* raw = pool.get();
    const Address a = grant(*pool, 4 * kMiB, 0);
    const Address b = grant(*pool, 3000, 0);
    std::thread first([&] { EXPECT_OK(raw->free(a)); });
    std::thread second([&] { pool.reset(); });
    EXPECT_OK(poolrt::pool_table()->free(reinterpret_cast<void*>(b)));
    first.join();
    second.join();
    EXPECT(nothing_is_left());
  }
}

std::atomic<bool> draining{false};
std::atomic<bool> freed{false};

int drain_late(int card) {
  draining = true;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
  while (!freed && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  return driver().drain(card);
}

// ends the pool   [lock] it is abandoned [unlock]   drain the card ............   [lock] nothing is left: delete
// frees                                                [lock] the last block [unlock]
CASE(the_last_block_goes_while_the_pool_ends) {
  static poolrt::DriverTable late;
  configure({16 * kMiB});
  late = driver();
  late.drain = &drain_late;
  int status = -1;
  auto pool = poolrt::Pool::open(late, options_of({16 * kMiB}), &status);
  EXPECT_OK(status);
  Pool* raw = pool.get();
  const Address cached = grant(*pool, 4 * kMiB, 0);
  const Address last = grant(*pool, 4 * kMiB, 0);
  EXPECT_OK(pool->free(cached));
  std::thread ends([&] { pool.reset(); });
  while (!draining) std::this_thread::yield();
  EXPECT_OK(raw->free(last));
  freed = true;
  ends.join();
  EXPECT(nothing_is_left());
}

// The table that the virtual cards use: only inside a pool, only for its cards, for the thread that entered.
CASE(a_thread_allocates_from_the_pool_it_is_inside) {
  const poolrt::PoolTable& table = *poolrt::pool_table();
  const auto outer = open_pool({16 * kMiB, 16 * kMiB});
  const auto inner = open_pool(options_of({16 * kMiB}));
  EXPECT(table.activity->load() == 0);
  void* pointer = nullptr;
  EXPECT(table.allocate(0, 512, &pointer) == poolrt::kNotFound);
  const int first = poolrt::enter_pool(outer, poolrt::kHostMemory);
  EXPECT_OK(table.allocate(1, 512, &pointer));
  poolrt::LiveBlock block{};
  EXPECT_OK(outer->find(reinterpret_cast<Address>(pointer), &block));
  EXPECT(block.home == 1 && block.device == 1);
  const int second = poolrt::enter_pool(inner, 0);
  EXPECT(poolrt::leave_pool(first) == poolrt::kInvalidValue);
  void* other = nullptr;
  EXPECT_OK(table.allocate(0, 512, &other));
  EXPECT_OK(inner->find(reinterpret_cast<Address>(other), &block));
  EXPECT_OK(table.free(other));
  EXPECT_OK(table.allocate(1, 512, &other));  // the inner one is for card 0 alone
  EXPECT_OK(outer->find(reinterpret_cast<Address>(other), &block));
  int card = -1;
  EXPECT_OK(table.card(other, &card));
  EXPECT(block.home == 1 && card == 1);
  std::thread elsewhere([&] {
    void* nothing = nullptr;
    EXPECT(table.allocate(0, 512, &nothing) == poolrt::kNotFound);
    EXPECT_OK(table.retain(pointer));
    EXPECT_OK(table.free(pointer));
  });
  elsewhere.join();
  EXPECT_OK(poolrt::leave_pool(second));
  EXPECT_OK(poolrt::leave_pool(first));
  EXPECT(table.activity->load() == 1);  // one pool that holds two live blocks
  EXPECT_OK(table.free(pointer));
  EXPECT(table.activity->load() == 1);
  EXPECT_OK(table.free(other));
  EXPECT(table.free(&card) == poolrt::kNotFound && table.activity->load() == 0);
}

}  // namespace
