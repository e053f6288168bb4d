// What the cases of the pool share: pools of small cards, blocks filled with a mark of their own, and the check that
// everything adds up.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "host_cases.hpp"
#include "pool.hpp"

inline poolrt::PoolOptions options_of(const std::vector<std::size_t>& limits, std::size_t host_nbytes = 0) {
  poolrt::PoolOptions options;
  for (std::size_t card = 0; card < limits.size(); ++card)
    options.cards.push_back({static_cast<int>(card), limits[card]});
  options.host_limit_nbytes = host_nbytes;
  return options;
}

inline std::shared_ptr<poolrt::Pool> open_pool(const poolrt::PoolOptions& options) {
  int status = -1;
  auto pool = poolrt::Pool::open(driver(), options, &status);
  EXPECT_OK(status);
  return pool;
}

// One card per limit, each with exactly that much memory.
inline std::shared_ptr<poolrt::Pool> open_pool(const std::vector<std::size_t>& limits, std::size_t host_nbytes = 0) {
  configure(limits);
  return open_pool(options_of(limits, host_nbytes));
}

inline poolrt::Address grant(poolrt::Pool& pool, std::size_t nbytes, int home, poolrt::Stream stream = nullptr) {
  poolrt::Address address = 0;
  EXPECT_OK(pool.allocate(nbytes, home, stream, &address));
  EXPECT(address != 0);
  return address;
}

inline bool refused(poolrt::Pool& pool, std::size_t nbytes, int home) {
  poolrt::Address address = 1;
  return pool.allocate(nbytes, home, nullptr, &address) == poolrt::kOutOfMemory && address == 0;
}

inline std::vector<poolrt::Piece> extents_of(const poolrt::Pool& pool, poolrt::Address address) {
  std::vector<poolrt::Piece> extents;
  EXPECT_OK(pool.extents(address, &extents));
  return extents;
}

// The first and the last bytes of every granule carry the mark: enough to see pages that were mixed up.
inline void fill(poolrt::Address address, std::size_t nbytes, unsigned char mark) {
  auto* bytes = reinterpret_cast<unsigned char*>(address);
  for (std::size_t at = 0; at < nbytes; at += kPage) bytes[at] = mark;
  bytes[nbytes - 1] = mark;
}

inline bool holds(poolrt::Address address, std::size_t nbytes, unsigned char mark) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(address);
  for (std::size_t at = 0; at < nbytes; at += kPage) {
    if (bytes[at] != mark) return false;
  }
  return bytes[nbytes - 1] == mark;
}

// Empty, or what does not add up.
inline std::string wrong_with(poolrt::Pool& pool) {
  const poolrt::PoolStats now = pool.stats();
  std::size_t mapped = 0;
  for (const poolrt::TierUse& tier : now.tiers) mapped += tier.mapped_nbytes;
  if (mapped != now.live_nbytes + now.cached_nbytes + now.deferred_nbytes) return "the tiers do not add up";
  if (now.requested_nbytes > now.live_nbytes || now.spilled_nbytes > now.live_nbytes) return "more than lives";
  if (now.largest_free_nbytes > now.cached_nbytes) return "a free piece larger than all of them";
  if (now.lost_handles != 0) return "a handle was lost";
  return pool.audit();
}

inline std::uint64_t driver_calls() {
  std::uint64_t calls = 0;
  EXPECT_OK(host().calls(&calls));
  return calls;
}

inline void close(poolrt::Pool& pool) {
  std::vector<poolrt::LiveBlock> left;
  EXPECT_OK(pool.close(&left));
  EXPECT(left.empty());
}
