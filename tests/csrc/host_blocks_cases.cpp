// Blocks of the HOST driver, and their ledgers.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "host_cases.hpp"

namespace {

CASE(a_block_is_aligned_and_charged_in_steps_of_512) {
  configure({kMiB, kMiB});
  char* block = static_cast<char*>(allocate(1, 1000));
  std::memset(block, 1, 1000);
  EXPECT(reinterpret_cast<std::uintptr_t>(block) % 64 == 0);
  EXPECT(ledger(1).used_nbytes == 1024 && ledger(0).used_nbytes == 0);
  int card = -2;
  EXPECT(host().memory_card(block, &card) == poolrt::kSuccess && card == 1);
  EXPECT(host().memory_free(block) == poolrt::kSuccess);
  EXPECT(ledger(1).used_nbytes == 0 && ledger(1).peak_nbytes == 1024 && ledger(1).allocation_count == 1);
}

CASE(a_large_block_is_kept_for_the_next_request_of_its_place) {
  configure({kMiB});
  for (const int place : {0, poolrt::kHostMemory}) {
    void* block = allocate(place, 200000);
    EXPECT(host().memory_free(block) == poolrt::kSuccess);
    void* other_size = allocate(place, 300000);
    void* again = allocate(place, 200000);
    EXPECT(again == block && other_size != block);
    EXPECT(host().memory_free(again) == poolrt::kSuccess && host().memory_free(other_size) == poolrt::kSuccess);
  }
  EXPECT(ledger(0).used_nbytes == 0);
}

CASE(an_empty_block_costs_nothing) {
  configure({kMiB});
  EXPECT(allocate(0, 0) == nullptr);
  EXPECT(ledger(0).used_nbytes == 0 && ledger(0).allocation_count == 0);
  EXPECT(host().memory_free(nullptr) == poolrt::kSuccess);
}

CASE(the_last_owner_returns_the_memory) {
  configure({kMiB});
  void* block = allocate(0, 512);
  EXPECT(host().memory_retain(block) == poolrt::kSuccess);
  EXPECT(host().memory_free(block) == poolrt::kSuccess);
  EXPECT(ledger(0).used_nbytes == 512);
  EXPECT(host().memory_free(block) == poolrt::kSuccess);
  EXPECT(ledger(0).used_nbytes == 0);
}

CASE(a_full_card_refuses_and_stays_as_it_was) {
  configure({kMiB});
  void* first = allocate(0, kMiB - 512);
  void* refused = first;
  EXPECT(host().memory_allocate(0, 513, &refused) == poolrt::kOutOfMemory);
  EXPECT(refused == nullptr);
  EXPECT(host().memory_allocate(0, SIZE_MAX, &refused) == poolrt::kOutOfMemory);
  EXPECT(ledger(0).used_nbytes == kMiB - 512 && ledger(0).peak_nbytes == kMiB - 512);
  EXPECT(ledger(0).refusal_count == 1);
  void* last = allocate(0, 512);
  EXPECT(host().memory_free(last) == poolrt::kSuccess && host().memory_free(first) == poolrt::kSuccess);
  host().reset_peak(0);
  EXPECT(ledger(0).peak_nbytes == 0);
}

CASE(host_memory_is_in_no_ledger) {
  configure({kMiB});
  void* block = allocate(poolrt::kHostMemory, 4 * kMiB);
  EXPECT(ledger(0).used_nbytes == 0);
  EXPECT(host().memory_free(block) == poolrt::kSuccess);
}

CASE(another_allocators_block_is_told_apart) {
  void* foreign = nullptr;
  EXPECT(posix_memalign(&foreign, 64, 256) == 0);
  char* inside = static_cast<char*>(foreign) + 64;  // so that what lies in front belongs to the block
  std::memset(foreign, 0, 256);
  EXPECT(host().memory_free(inside) == poolrt::kNotFound);
  EXPECT(host().memory_retain(inside) == poolrt::kNotFound);
  std::free(foreign);
}

CASE(cards_come_and_go_while_blocks_stay) {
  configure({kMiB, kMiB, kMiB});
  void* block = allocate(2, 4096);
  configure({kMiB});
  int count = 0;
  EXPECT(host().driver.device_count(&count) == poolrt::kSuccess && count == 1);
  void* refused = nullptr;
  EXPECT(host().memory_allocate(2, 1, &refused) == poolrt::kInvalidDevice);
  EXPECT(ledger(2).used_nbytes == 4096);
  EXPECT(host().memory_free(block) == poolrt::kSuccess && ledger(2).used_nbytes == 0);
  configure({kMiB, kMiB});
  int possible = 0;
  EXPECT(host().driver.can_access_peer(0, 1, &possible) == poolrt::kSuccess && possible == 1);
  EXPECT(host().set_peer(0, 1, 0) == poolrt::kSuccess);
  EXPECT(host().driver.can_access_peer(0, 1, &possible) == poolrt::kSuccess && possible == 0);
  EXPECT(host().driver.can_access_peer(1, 0, &possible) == poolrt::kSuccess && possible == 1);
  EXPECT(host().configure(0, nullptr) == poolrt::kInvalidValue);
  EXPECT(host().configure(poolrt::kMaxCards + 1, nullptr) == poolrt::kInvalidValue);
}

// Four threads on two cards, each filling its blocks with its own mark and checking it before the block is freed.
CASE(threads_share_a_ledger) {
  constexpr std::size_t kCapacity = 64 * 1024;
  configure({kCapacity, kCapacity});
  std::atomic<std::uint64_t> granted{0};
  std::atomic<std::uint64_t> refused{0};
  const auto work = [&](int number) {
    std::mt19937 random(number);
    std::vector<std::pair<unsigned char*, std::size_t>> blocks;
    for (int i = 0; i < 4000; ++i) {
      if (!blocks.empty() && random() % 2 == 0) {
        const auto [block, nbytes] = blocks.back();
        EXPECT(block[0] == number && block[nbytes - 1] == number);
        EXPECT(host().memory_free(block) == poolrt::kSuccess);
        blocks.pop_back();
        continue;
      }
      const std::size_t nbytes = 1 + random() % 8192;
      void* block = nullptr;
      const int status = host().memory_allocate(number % 2, nbytes, &block);
      if (status == poolrt::kSuccess) {
        std::memset(block, number, nbytes);
        blocks.emplace_back(static_cast<unsigned char*>(block), nbytes);
        ++granted;
      } else {
        EXPECT(status == poolrt::kOutOfMemory);
        ++refused;
      }
      EXPECT(ledger(number % 2).used_nbytes <= kCapacity);
    }
    for (const auto& [block, nbytes] : blocks) EXPECT(host().memory_free(block) == poolrt::kSuccess);
  };
  std::vector<std::thread> threads;
  for (int number = 0; number < 4; ++number) threads.emplace_back(work, number);
  for (std::thread& thread : threads) thread.join();
  EXPECT(ledger(0).used_nbytes == 0 && ledger(1).used_nbytes == 0);
  EXPECT(ledger(0).peak_nbytes <= kCapacity && ledger(1).peak_nbytes <= kCapacity);
  EXPECT(ledger(0).allocation_count + ledger(1).allocation_count == granted);
  EXPECT(ledger(0).refusal_count + ledger(1).refusal_count == refused);
  EXPECT(granted > 0 && refused > 0);
}

// A refusal is one step: while one thread asks in vain for more than there is, another always gets what is free.
CASE(a_refused_thread_costs_the_others_nothing) {
  configure({kMiB});
  std::atomic<bool> stop{false};
  std::thread greedy([&] {
    void* block = nullptr;
    while (!stop) EXPECT(host().memory_allocate(0, 2 * kMiB, &block) == poolrt::kOutOfMemory);
  });
  for (int i = 0; i < 20000; ++i) EXPECT(host().memory_free(allocate(0, kMiB / 2)) == poolrt::kSuccess);
  stop = true;
  greedy.join();
  EXPECT(ledger(0).peak_nbytes == kMiB / 2);
}

CASE(cards_change_while_threads_work) {
  configure({kMiB, kMiB});
  std::atomic<bool> stop{false};
  std::thread worker([&] {
    while (!stop) {
      void* block = nullptr;
      if (host().memory_allocate(1, 4096, &block) == poolrt::kSuccess) host().memory_free(block);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    configure({kMiB});
    configure({kMiB, static_cast<std::size_t>(i)});
  }
  stop = true;
  worker.join();
  EXPECT(ledger(1).used_nbytes == 0);
}

}  // namespace
