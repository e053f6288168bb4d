// What a pool hands out, what it keeps, and what it gives back.
#include <algorithm>

#include "pool_cases.hpp"
#include "pool_message.hpp"

namespace {

using poolrt::Address;
using poolrt::kHostMemory;
using poolrt::LiveBlock;
using poolrt::Piece;
using poolrt::Pool;
using poolrt::PoolStats;
using Pieces = std::vector<Piece>;

CASE(a_tensor_larger_than_a_card_lies_on_several) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB}, 20 * kMiB);
  const Address large = grant(*pool, 100 * kMiB, 0);
  fill(large, 100 * kMiB, 7);
  EXPECT(extents_of(*pool, large) == (Pieces{{0, 64 * kMiB}, {1, 36 * kMiB}}));
  const Address next = grant(*pool, 48 * kMiB, 1);
  EXPECT(extents_of(*pool, next) == (Pieces{{1, 28 * kMiB}, {kHostMemory, 20 * kMiB}}));
  EXPECT(refused(*pool, 1, 0) && refused(*pool, 2 * kMiB, 1) && refused(*pool, SIZE_MAX, 0));
  const std::string said = poolrt::last_pool_message();
  for (const char* part : {"card 0 (home) 64.0 of 64.0 MiB used", "card 1 64.0 of 64.0 MiB used",
                           "host 20.0 of 20.0 MiB used", "148.0 MiB live"}) {
    EXPECT(said.find(part) != std::string::npos);
  }
  const PoolStats full = pool->stats();
  EXPECT(full.live_nbytes == 148 * kMiB && full.spilled_nbytes == 56 * kMiB && full.refusals == 3);
  EXPECT(holds(large, 100 * kMiB, 7) && wrong_with(*pool).empty());
  EXPECT_OK(pool->free(large));
  EXPECT_OK(pool->free(next));
  close(*pool);
  EXPECT(nothing_is_left() && ledger(0).used_nbytes == 0 && ledger(kHostMemory).used_nbytes == 0);
}

CASE(a_hit_makes_no_driver_call) {
  const auto pool = open_pool({64 * kMiB});
  const Address first = grant(*pool, 9 * kMiB, 0);
  const Address small = grant(*pool, 1000, 0);
  EXPECT_OK(pool->free(first));
  const std::uint64_t before = driver_calls();
  EXPECT(grant(*pool, 9 * kMiB, 0) == first);  // the same size
  EXPECT_OK(pool->free(first));
  EXPECT(grant(*pool, 9 * kMiB - 5, 0) == first);  // rounded up to the same
  EXPECT_OK(pool->free(first));
  for (int i = 0; i < 100; ++i) grant(*pool, 512, 0);
  EXPECT_OK(pool->free(small));
  EXPECT(driver_calls() == before);
  const PoolStats now = pool->stats();
  EXPECT(now.hits == 102 && now.misses == 2);
  for (const LiveBlock& block : pool->live()) EXPECT_OK(pool->free(block.address));
  close(*pool);
}

CASE(a_cached_segment_serves_what_wastes_an_eighth_at_most) {
  const auto pool = open_pool({128 * kMiB});
  const Address large = grant(*pool, 36 * kMiB, 0);
  EXPECT_OK(pool->free(large));
  EXPECT(grant(*pool, 32 * kMiB, 0) == large);
  EXPECT(pool->stats().live_nbytes == 36 * kMiB && pool->stats().requested_nbytes == 32 * kMiB);
  EXPECT_OK(pool->free(large));
  const Address other = grant(*pool, 30 * kMiB, 0);
  EXPECT(other != large);
  EXPECT(wrong_with(*pool).empty());
  EXPECT_OK(pool->free(other));
  EXPECT(pool->stats().fragmentation() > 0.4 && pool->stats().largest_free_nbytes == 36 * kMiB);
}

//     | 1024 | 512 | 512 | hole ... |    the middle goes, then the front, then the last: holes join, the segment is
//     cached
CASE(small_blocks_share_a_segment_and_holes_join) {
  const auto pool = open_pool({64 * kMiB});
  const Address a = grant(*pool, 1000, 0);
  const Address b = grant(*pool, 1, 0);
  const Address c = grant(*pool, 512, 0);
  EXPECT(b == a + 1024 && c == b + 512);
  EXPECT(pool->stats().live_nbytes == 2048 && pool->stats().cached_nbytes == kPage - 2048);
  EXPECT_OK(pool->free(b));
  EXPECT(grant(*pool, 100, 0) == b);  // the best fit
  EXPECT_OK(pool->free(b));
  EXPECT_OK(pool->free(a));
  EXPECT(pool->stats().largest_free_nbytes == kPage - 2048 && wrong_with(*pool).empty());
  EXPECT(grant(*pool, 1536, 0) == a);
  EXPECT_OK(pool->free(a));
  EXPECT_OK(pool->free(c));
  EXPECT(pool->stats().largest_free_nbytes == kPage && pool->stats().fragmentation() == 0.0);
  EXPECT(grant(*pool, 2 * kMiB, 0) == a);  // an empty shared segment is a segment like any other
  EXPECT_OK(pool->free(a));
  EXPECT(pool->stats().misses == 1 && wrong_with(*pool).empty());
  close(*pool);
}

CASE(an_address_inside_finds_its_block) {
  const auto pool = open_pool({64 * kMiB});
  const Address small = grant(*pool, 1000, 0);
  const Address large = grant(*pool, 5 * kMiB, 0);
  LiveBlock block{};
  EXPECT_OK(pool->find(small + 999, &block));
  EXPECT(block.address == small && block.nbytes == 1024 && block.requested_nbytes == 1000 && block.home == 0);
  EXPECT_OK(pool->find(large + 5 * kMiB, &block));
  EXPECT(block.address == large && block.nbytes == 6 * kMiB);
  EXPECT(pool->find(large + 6 * kMiB, &block) == poolrt::kNotFound);
  EXPECT(pool->find(small + 1024, &block) == poolrt::kNotFound && pool->find(1, &block) == poolrt::kNotFound);
  EXPECT(extents_of(*pool, small + 5) == (Pieces{{0, 1024}}));
  EXPECT_OK(pool->free(small));
  EXPECT_OK(pool->free(large));
  EXPECT(pool->free(large) == poolrt::kNotFound && pool->retain(large) == poolrt::kNotFound);
}

CASE(the_last_owner_frees) {
  const auto pool = open_pool({64 * kMiB});
  const Address block = grant(*pool, 5 * kMiB, 0);
  EXPECT_OK(pool->retain(block));
  EXPECT_OK(pool->free(block));
  EXPECT(pool->stats().live_blocks == 1);
  EXPECT_OK(pool->free(block));
  EXPECT(pool->stats().live_blocks == 0 && pool->stats().live_nbytes == 0);
}

CASE(nothing_at_all_is_a_block_too) {
  const auto pool = open_pool({64 * kMiB});
  Address address = 1;
  EXPECT_OK(pool->allocate(0, 0, nullptr, &address));
  EXPECT(address == 0 && pool->stats().misses == 0);
  EXPECT_OK(pool->free(0));
  EXPECT(pool->allocate(512, 1, nullptr, &address) == poolrt::kInvalidDevice);
}

// Room for three; the one that was freed first goes, and only as many as needed.
CASE(the_least_recently_used_segment_gives_way) {
  const auto pool = open_pool({30 * kMiB});
  const Address a = grant(*pool, 8 * kMiB, 0);
  const Address b = grant(*pool, 10 * kMiB, 0);
  const Address c = grant(*pool, 12 * kMiB, 0);
  for (const Address block : {b, a, c}) EXPECT_OK(pool->free(block));
  EXPECT(pool->stats().cached_nbytes == 30 * kMiB);
  const Address d = grant(*pool, 6 * kMiB, 0);
  EXPECT(pool->stats().evictions == 1 && pool->stats().cached_nbytes == 20 * kMiB);
  EXPECT(grant(*pool, 8 * kMiB, 0) == a && grant(*pool, 12 * kMiB, 0) == c);
  EXPECT(wrong_with(*pool).empty());
  for (const Address block : {a, c, d}) EXPECT_OK(pool->free(block));
  close(*pool);
}

CASE(cached_memory_never_drives_live_memory_off_its_card) {
  const auto pool = open_pool({32 * kMiB, 32 * kMiB});
  EXPECT_OK(pool->free(grant(*pool, 20 * kMiB, 0)));
  const Address block = grant(*pool, 30 * kMiB, 0);
  EXPECT(extents_of(*pool, block) == (Pieces{{0, 30 * kMiB}}));
  EXPECT_OK(pool->free(block));
}

CASE(a_spilled_segment_is_reused_only_while_its_home_is_short) {
  const auto pool = open_pool({32 * kMiB, 32 * kMiB});
  const Address whole = grant(*pool, 24 * kMiB, 0);
  const Address spilled = grant(*pool, 16 * kMiB, 0);
  EXPECT(extents_of(*pool, spilled) == (Pieces{{0, 8 * kMiB}, {1, 8 * kMiB}}));
  EXPECT_OK(pool->free(spilled));
  EXPECT(grant(*pool, 16 * kMiB, 0) == spilled);  // home is as full as before
  EXPECT_OK(pool->free(spilled));
  EXPECT_OK(pool->free(whole));
  std::size_t nbytes = 0;
  EXPECT_OK(pool->set_cache_limit(16 * kMiB));  // the older one, which is the spilled one, and then `whole` is cached
  EXPECT_OK(pool->trim(&nbytes));
  const Address blocker = grant(*pool, 24 * kMiB, 0);
  const Address again = grant(*pool, 16 * kMiB, 0);
  EXPECT_OK(pool->set_cache_limit(SIZE_MAX));
  EXPECT_OK(pool->free(again));
  EXPECT_OK(pool->set_limit(0, 64 * kMiB));
  EXPECT_OK(host().set_capacity(0, 64 * kMiB));
  const Address home = grant(*pool, 16 * kMiB, 0);
  EXPECT(extents_of(*pool, home) == (Pieces{{0, 16 * kMiB}}));
  EXPECT_OK(pool->free(home));
  EXPECT_OK(pool->free(blocker));
  EXPECT(wrong_with(*pool).empty());
}

CASE(a_cache_limit_is_kept) {
  const auto pool = open_pool({64 * kMiB});
  EXPECT_OK(pool->set_cache_limit(12 * kMiB));
  const Address a = grant(*pool, 8 * kMiB, 0);
  const Address b = grant(*pool, 6 * kMiB, 0);
  EXPECT_OK(pool->free(a));
  EXPECT_OK(pool->free(b));
  EXPECT(pool->stats().cached_nbytes == 6 * kMiB && pool->stats().evictions == 1);
  EXPECT_OK(pool->set_cache_limit(0));
  EXPECT(pool->stats().cached_nbytes == 0 && ledger(0).used_nbytes == 0);
}

CASE(trim_gives_back_what_nobody_uses) {
  const auto pool = open_pool({64 * kMiB});
  const Address kept = grant(*pool, 5 * kMiB, 0);
  EXPECT_OK(pool->free(grant(*pool, 9 * kMiB, 0)));
  EXPECT_OK(pool->free(grant(*pool, 100, 0)));
  std::size_t nbytes = 0;
  EXPECT_OK(pool->trim(&nbytes));
  EXPECT(nbytes == 12 * kMiB && ledger(0).used_nbytes == 6 * kMiB);
  EXPECT_OK(pool->free(kept));
}

CASE(a_lowered_limit_takes_nothing_away) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB});
  const Address block = grant(*pool, 30 * kMiB, 0);
  EXPECT_OK(pool->set_limit(0, 10 * kMiB));
  EXPECT(extents_of(*pool, grant(*pool, 4 * kMiB, 0)) == (Pieces{{1, 4 * kMiB}}));
  EXPECT(pool->set_limit(5, kMiB) == poolrt::kInvalidDevice);
  EXPECT_OK(pool->set_limit(kHostMemory, 8 * kMiB));
  EXPECT_OK(pool->set_limit(1, 0));
  const Address last = grant(*pool, 8 * kMiB, 0);
  EXPECT(extents_of(*pool, last) == (Pieces{{kHostMemory, 8 * kMiB}}));
  fill(block, 30 * kMiB, 3);
  for (const LiveBlock& live : pool->live()) EXPECT_OK(pool->free(live.address));
  close(*pool);
}

// Somebody else fills card 0 below the pool's limit: smaller bites, then the next tier; a cached segment gives way
// first.
CASE(a_card_that_others_use_gives_what_it_has) {
  configure({32 * kMiB, 32 * kMiB});
  const auto pool = open_pool(options_of({64 * kMiB, 64 * kMiB}));
  void* other = allocate(0, 19 * kMiB);
  const Address block = grant(*pool, 20 * kMiB, 0);
  Pieces extents = extents_of(*pool, block);
  std::size_t at_home = 0;
  for (const Piece& extent : extents) at_home += extent.place == 0 ? extent.nbytes : 0;
  EXPECT(at_home == 12 * kMiB && extents.back().place == 1);
  EXPECT_OK(pool->free(block));
  const Address small = grant(*pool, 10 * kMiB, 0);  // the cached 12 MiB at home give way to it
  EXPECT(extents_of(*pool, small) == (Pieces{{0, 10 * kMiB}}));
  EXPECT_OK(host().memory_free(other));
  EXPECT_OK(pool->free(small));
  EXPECT(wrong_with(*pool).empty());
  close(*pool);
}

//     0 <-> 1     2 reaches nobody and nobody reaches 2: memory of 0 may lie on 1, never on 2, and the other way round
CASE(only_cards_in_reach_share_a_segment) {
  configure({8 * kMiB, 8 * kMiB, 8 * kMiB});
  for (const int other : {0, 1}) {
    EXPECT_OK(host().set_peer(other, 2, 0));
    EXPECT_OK(host().set_peer(2, other, 0));
  }
  const auto pool = open_pool(options_of({8 * kMiB, 8 * kMiB, 8 * kMiB}, 8 * kMiB));
  const Address block = grant(*pool, 20 * kMiB, 0);
  EXPECT(extents_of(*pool, block) == (Pieces{{0, 8 * kMiB}, {1, 8 * kMiB}, {kHostMemory, 4 * kMiB}}));
  EXPECT(may_touch(block, 0) && may_touch(block, 1) && !may_touch(block, 2));
  const Address alone = grant(*pool, 10 * kMiB, 2);
  EXPECT(extents_of(*pool, alone) == (Pieces{{2, 8 * kMiB}, {kHostMemory, 2 * kMiB}}));
  EXPECT(may_touch(alone, 2) && !may_touch(alone, 0));
  EXPECT(refused(*pool, 4 * kMiB, 2));
  EXPECT_OK(pool->free(block));
  EXPECT_OK(pool->free(alone));
}

CASE(nearer_peers_come_first) {
  configure({8 * kMiB, 8 * kMiB, 8 * kMiB});
  poolrt::PoolOptions options = options_of({8 * kMiB, 8 * kMiB, 8 * kMiB});
  options.peers = {{2, 1}, {0, 2}, {}};
  const auto pool = open_pool(options);
  const Address block = grant(*pool, 12 * kMiB, 0);
  EXPECT(extents_of(*pool, block) == (Pieces{{0, 8 * kMiB}, {2, 4 * kMiB}}));
  EXPECT(refused(*pool, 6 * kMiB, 2));  // it was given no peers
  EXPECT_OK(pool->free(block));
}

// Two cards of the pool on one card of the driver: a limit each, access once.
CASE(logical_cards_share_an_ordinal) {
  configure({64 * kMiB});
  poolrt::PoolOptions options;
  options.cards = {{0, 8 * kMiB}, {0, 8 * kMiB}};
  const auto pool = open_pool(options);
  const Address block = grant(*pool, 12 * kMiB, 1);
  EXPECT(extents_of(*pool, block) == (Pieces{{1, 8 * kMiB}, {0, 4 * kMiB}}));
  EXPECT(refused(*pool, 6 * kMiB, 0) && ledger(0).used_nbytes == 12 * kMiB);
  EXPECT_OK(pool->free(block));
  close(*pool);
}

CASE(close_refuses_while_blocks_live) {
  const auto pool = open_pool({64 * kMiB});
  const Address block = grant(*pool, 3000, 0);
  std::vector<LiveBlock> left;
  EXPECT(pool->close(&left) == poolrt::kInvalidValue);
  EXPECT(left.size() == 1 && left[0].address == block && left[0].requested_nbytes == 3000);
  EXPECT_OK(pool->free(grant(*pool, 100, 0)));  // it goes on as before
  EXPECT_OK(pool->free(block));
  close(*pool);
  close(*pool);
  Address address = 0;
  EXPECT(pool->allocate(1, 0, nullptr, &address) == poolrt::kNotInitialized);
  EXPECT(nothing_is_left());
}

CASE(blocks_outlive_their_pool) {
  auto pool = open_pool({64 * kMiB});
  Pool* raw = pool.get();
  const Address a = grant(*pool, 5 * kMiB, 0);
  const Address b = grant(*pool, 700, 0);
  EXPECT_OK(pool->free(grant(*pool, 9 * kMiB, 0)));
  pool.reset();
  EXPECT(ledger(0).used_nbytes == 8 * kMiB);  // what was cached is gone
  fill(a, 5 * kMiB, 9);
  EXPECT_OK(raw->free(b));
  EXPECT(holds(a, 5 * kMiB, 9));
  EXPECT_OK(raw->free(a));
  EXPECT(nothing_is_left() && ledger(0).used_nbytes == 0);
}

CASE(a_pool_of_nonsense_is_refused) {
  configure({8 * kMiB});
  int status = 0;
  EXPECT(Pool::open(driver(), options_of({}), &status) == nullptr && status == poolrt::kInvalidValue);
  EXPECT(Pool::open(driver(), options_of({kMiB, kMiB}), &status) == nullptr && status == poolrt::kInvalidDevice);
  poolrt::PoolOptions options = options_of({kMiB});
  options.peers = {{3}};
  EXPECT(Pool::open(driver(), options, &status) == nullptr && status == poolrt::kInvalidValue);
}

CASE(peaks_are_remembered) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB});
  const Address a = grant(*pool, 70 * kMiB, 0);
  EXPECT_OK(pool->free(a));
  std::size_t nbytes = 0;
  EXPECT_OK(pool->trim(&nbytes));
  const PoolStats now = pool->stats();
  EXPECT(now.peak_live_nbytes == 70 * kMiB && now.tiers[0].peak_nbytes == 64 * kMiB);
  EXPECT(now.tiers[1].peak_nbytes == 6 * kMiB && now.tiers[0].mapped_nbytes == 0);
}

}  // namespace
