// How long the pool takes from C++ to hand out one block and take it back, beside the call that torch's CPU allocator
// makes for a tensor. Built and run by allocator_program.py.
//
//     allocator_cpp HOST|CUDA ROUNDS PAIRS UNCACHED_PAIRS NBYTES...      JSON on standard output
//
//     cached       allocate, free                   the block stays mapped and is handed out again
//     in stream    allocate, free after a stream    likewise; an event tells when the stream has passed
//     uncached     allocate, free, trim             every page comes from the driver and goes back to it
//     malloc       posix_memalign to 64 bytes, free     c10/core/impl/alloc_cpu.cpp does no more
//
// All take turns within a round.
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "driver.hpp"
#include "pool.hpp"

namespace {

using poolrt::Address;
using poolrt::Pool;

constexpr std::size_t kCardNbytes = std::size_t{8} << 30;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "allocator_cpp: %s\n", why.c_str());
  std::exit(1);
}

void check(int status, const char* call) {
  if (status != poolrt::kSuccess) give_up(std::string(call) + " answered " + std::to_string(status));
}

const poolrt::DriverTable& table_named(const std::string& name) {
  const char* why = "the name is HOST or CUDA";
  if (name == "HOST") {
    check(poolrt::host_driver_table()->configure(1, &kCardNbytes), "configure");
    return poolrt::host_driver_table()->driver;
  }
  const poolrt::DriverTable* table = name == "CUDA" ? poolrt::cuda_driver_table(&why) : nullptr;
  if (table == nullptr) give_up(name + ": " + why);
  check(table->init(), "init");
  return *table;
}

std::shared_ptr<Pool> open_pool(const poolrt::DriverTable& table) {
  poolrt::PoolOptions options;
  options.cards = {{0, kCardNbytes}};
  int status = poolrt::kSuccess;
  auto pool = Pool::open(table, options, &status);
  check(status, "open");
  return pool;
}

struct Contender {
  std::string name;
  int pairs;  // of an allocation and its free, in one round
  std::function<void(std::size_t nbytes)> pair;
};

struct Measured {
  std::vector<double> round_s;   // per pair: the mean of each round, no clock inside
  std::vector<double> single_s;  // pairs timed one by one, what the clock takes included
  std::uint64_t driver_calls = 0;
};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void measure_round(const Contender& contender, std::size_t nbytes, Measured& measured) {
  contender.pair(nbytes);
  const double start = seconds_now();
  for (int i = 0; i < contender.pairs; ++i) contender.pair(nbytes);
  measured.round_s.push_back((seconds_now() - start) / contender.pairs);
  for (int i = 0; i < contender.pairs; ++i) {
    const double before = seconds_now();
    contender.pair(nbytes);
    measured.single_s.push_back(seconds_now() - before);
  }
}

double percentile(std::vector<double> values, double share) {
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<std::size_t>(at)];
}

// A block that nobody looks at may be optimised away together with its call.
void keep(void* block) { asm volatile("" : : "r"(block) : "memory"); }

std::vector<Contender> contenders_of(Pool& pool, int pairs, int uncached_pairs) {
  const auto allocate = [&pool](std::size_t nbytes) {
    Address address = 0;
    check(pool.allocate(nbytes, /*home=*/0, /*stream=*/nullptr, &address), "allocate");
    return address;
  };
  const auto cached = [&pool, allocate](std::size_t nbytes) { check(pool.free(allocate(nbytes)), "free"); };
  const auto in_stream = [&pool, allocate](std::size_t nbytes) {
    check(pool.free(allocate(nbytes), {{0, nullptr}}), "free");
  };
  const auto uncached = [&pool, cached](std::size_t nbytes) {
    std::size_t trimmed = 0;
    cached(nbytes);
    check(pool.trim(&trimmed), "trim");
  };
  const auto with_malloc = [](std::size_t nbytes) {
    void* block = nullptr;
    if (posix_memalign(&block, 64, nbytes) != 0) give_up("posix_memalign: no memory");
    keep(block);
    free(block);
  };
  return {{"uncached", uncached_pairs, uncached},
          {"in stream", pairs, in_stream},
          {"cached", pairs, cached},
          {"malloc", pairs, with_malloc}};
}

void print_row(const Contender& contender, std::size_t nbytes, const Measured& measured, bool first) {
  std::printf("%s\n  {\"contender\": \"%s\", \"nbytes\": %zu, \"driver_calls\": %llu, \"p99_s\": %.9g, \"round_s\": [",
              first ? "" : ",", contender.name.c_str(), nbytes, static_cast<unsigned long long>(measured.driver_calls),
              percentile(measured.single_s, 0.99));
  for (std::size_t i = 0; i < measured.round_s.size(); ++i) {
    std::printf("%s%.9g", i == 0 ? "" : ", ", measured.round_s[i]);
  }
  std::printf("]}");
}

void measure_size(Pool& pool, const std::vector<Contender>& contenders, std::size_t nbytes, int rounds, bool first) {
  std::vector<Measured> measured(contenders.size());
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < contenders.size(); ++i) {
      contenders[i].pair(nbytes);  // whatever the contender before has left in the cache
      const std::uint64_t before = pool.stats().driver_calls;
      measure_round(contenders[i], nbytes, measured[i]);
      measured[i].driver_calls += pool.stats().driver_calls - before;
    }
  }
  for (std::size_t i = 0; i < contenders.size(); ++i) print_row(contenders[i], nbytes, measured[i], first && i == 0);
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 6) give_up("HOST|CUDA ROUNDS PAIRS UNCACHED_PAIRS NBYTES...");
  const auto pool = open_pool(table_named(arguments[1]));
  const int rounds = std::max(1, std::atoi(arguments[2]));
  const auto contenders =
      contenders_of(*pool, std::max(1, std::atoi(arguments[3])), std::max(1, std::atoi(arguments[4])));
  std::printf("[");
  for (int i = 5; i < count; ++i)
    measure_size(*pool, contenders, std::strtoull(arguments[i], nullptr, 10), rounds, i == 5);
  std::printf("\n]\n");
  std::vector<poolrt::LiveBlock> left;
  check(pool->close(&left), "close");
  if (!left.empty()) give_up(std::to_string(left.size()) + " blocks were left");
}
