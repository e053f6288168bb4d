// Order: memory that a stream may still use is neither handed out nor unmapped. Held streams make a missing wait
// visible.
#include <atomic>
#include <chrono>
#include <thread>

#include "pool_cases.hpp"
#include "torch_allocator.hpp"

extern "C" void* poolrt_malloc_3(ssize_t size, int device, void* stream);
extern "C" void poolrt_free_3(void* pointer, ssize_t size, int device, void* stream);

namespace {

using poolrt::Address;
using poolrt::Pool;
using poolrt::Stream;

class HeldStream {
 public:
  explicit HeldStream(int card) {
    EXPECT_OK(host().stream_create(card, &stream_));
    EXPECT_OK(host().stream_hold(stream_));
  }
  ~HeldStream() {
    pass();
    EXPECT_OK(host().stream_destroy(stream_));
  }
  void pass() const { EXPECT_OK(host().stream_pass(stream_)); }
  Stream get() const { return stream_; }

 private:
  Stream stream_ = nullptr;
};

//     free(a, {s})   allocate -> not a   s passes   allocate -> a
CASE(a_block_in_use_on_a_stream_is_not_handed_out) {
  const auto pool = open_pool({64 * kMiB});
  const HeldStream stream(0);
  const Address a = grant(*pool, 8 * kMiB, 0);
  EXPECT_OK(pool->free(a, {{0, stream.get()}}));
  EXPECT(pool->stats().deferred_nbytes == 8 * kMiB && pool->stats().live_nbytes == 0);
  const Address b = grant(*pool, 8 * kMiB, 0);
  EXPECT(b != a && wrong_with(*pool).empty());
  stream.pass();
  EXPECT(grant(*pool, 8 * kMiB, 0) == a);
  EXPECT_OK(pool->free(a));
  EXPECT_OK(pool->free(b));
  close(*pool);
}

CASE(small_blocks_wait_for_their_streams_too) {
  const auto pool = open_pool({64 * kMiB});
  const HeldStream stream(0);
  const Address a = grant(*pool, 1024, 0);
  EXPECT_OK(pool->free(a, {{0, stream.get()}}));
  EXPECT(pool->stats().deferred_nbytes == 1024);
  const Address b = grant(*pool, 1024, 0);
  EXPECT(b == a + 1024);
  stream.pass();
  EXPECT_OK(pool->free(b));
  EXPECT(pool->stats().deferred_nbytes == 0 && pool->stats().largest_free_nbytes == kPage);
  close(*pool);
}

CASE(the_same_stream_has_its_block_back_at_once) {
  const auto pool = open_pool({64 * kMiB});
  const HeldStream stream(0);
  const Address a = grant(*pool, 8 * kMiB, 0, stream.get());
  EXPECT_OK(pool->free(a, {{0, stream.get()}}));
  EXPECT(grant(*pool, 8 * kMiB, 0, stream.get()) == a);
  EXPECT(pool->stats().deferred_nbytes == 0 && pool->stats().hits == 1);
  const HeldStream other(0);
  EXPECT_OK(pool->free(a, {{0, stream.get()}, {0, other.get()}}));
  const Address b = grant(*pool, 8 * kMiB, 0, stream.get());  // the other one has not passed
  EXPECT(b != a && wrong_with(*pool).empty());
  EXPECT_OK(pool->free(b));
  other.pass();
  stream.pass();
  close(*pool);
}

CASE(every_stream_must_have_passed) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB});
  const HeldStream near(0);
  const HeldStream far(1);
  const Address a = grant(*pool, 8 * kMiB, 0);
  EXPECT_OK(pool->free(a, {{0, near.get()}, {1, far.get()}}));
  near.pass();
  EXPECT(pool->stats().deferred_nbytes == 8 * kMiB);
  far.pass();
  EXPECT(pool->stats().deferred_nbytes == 0 && pool->stats().cached_nbytes == 8 * kMiB);
}

CASE(what_an_earlier_owner_used_is_remembered) {
  const auto pool = open_pool({64 * kMiB});
  const HeldStream stream(0);
  const Address a = grant(*pool, 8 * kMiB, 0);
  EXPECT_OK(pool->retain(a));
  EXPECT_OK(pool->free(a, {{0, stream.get()}}));
  EXPECT_OK(pool->free(a));
  EXPECT(pool->stats().deferred_nbytes == 8 * kMiB);
  stream.pass();
  EXPECT(pool->stats().deferred_nbytes == 0);
}

// Only deferred memory is left: the request waits for it, and other threads do not wait for the request.
CASE(a_request_waits_for_deferred_memory_before_it_gives_up) {
  const auto pool = open_pool({16 * kMiB});
  const HeldStream stream(0);
  const Address a = grant(*pool, 10 * kMiB, 0);
  const Address small = grant(*pool, 100, 0);
  EXPECT_OK(pool->free(a, {{0, stream.get()}}));
  std::atomic<bool> served{false};
  std::thread waiting([&] {
    const Address b = grant(*pool, 12 * kMiB, 0);
    served = true;
    EXPECT_OK(pool->free(b));
  });
  for (int i = 0; i < 200; ++i) {
    EXPECT_OK(pool->free(grant(*pool, 100, 0)));
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  EXPECT(!served);
  stream.pass();
  waiting.join();
  EXPECT(pool->stats().refusals == 0 && wrong_with(*pool).empty());
  EXPECT_OK(pool->free(small));
  close(*pool);
}

// Without a stream named, work on any stream of a card with access still counts before pages go.
CASE(unmapping_waits_for_every_card_with_access) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB});
  const HeldStream peer(1);
  EXPECT_OK(pool->free(grant(*pool, 8 * kMiB, 0)));
  std::atomic<bool> trimmed{false};
  std::thread trimming([&] {
    std::size_t nbytes = 0;
    EXPECT_OK(pool->trim(&nbytes));
    EXPECT(nbytes == 8 * kMiB);
    trimmed = true;
  });
  for (int i = 0; i < 100; ++i) {
    EXPECT(wrong_with(*pool).empty() && page_state().mapped_nbytes == 8 * kMiB);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  EXPECT(!trimmed);
  peer.pass();
  trimming.join();
  EXPECT(page_state().mapped_nbytes == 0);
}

// While one thread waits for a card that has to be drained, a second one that is out of memory waits for the first.
CASE(memory_on_its_way_out_is_waited_for) {
  const auto pool = open_pool({16 * kMiB});
  const HeldStream stream(0);
  EXPECT_OK(pool->free(grant(*pool, 16 * kMiB, 0)));
  std::thread first([&] { EXPECT_OK(pool->free(grant(*pool, 8 * kMiB, 0))); });
  std::thread second([&] { EXPECT_OK(pool->free(grant(*pool, 6 * kMiB, 0))); });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  stream.pass();
  first.join();
  second.join();
  EXPECT(pool->stats().refusals == 0 && wrong_with(*pool).empty());
}

CASE(close_waits_for_what_is_deferred) {
  const auto pool = open_pool({64 * kMiB});
  const HeldStream stream(0);
  EXPECT_OK(pool->free(grant(*pool, 8 * kMiB, 0), {{0, stream.get()}}));
  std::thread passing([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    stream.pass();
  });
  close(*pool);
  passing.join();
  EXPECT(page_state().mapped_nbytes == 0 && page_state().event_count == 0);
}

CASE(a_stream_of_another_card_is_refused_and_the_block_lives_on) {
  const auto pool = open_pool({64 * kMiB, 64 * kMiB});
  const HeldStream stream(1);
  const Address a = grant(*pool, 8 * kMiB, 0);
  EXPECT(pool->free(a, {{0, stream.get()}}) != poolrt::kSuccess);
  EXPECT(pool->free(a, {{2, stream.get()}}) == poolrt::kInvalidDevice);
  EXPECT(pool->stats().live_nbytes == 8 * kMiB);
  EXPECT_OK(pool->free(a));
  stream.pass();
  close(*pool);
}

// torch passes an ordinal only; the slot says which pool and which home.
CASE(torch_allocates_through_a_pair_of_its_own) {
  configure({64 * kMiB});
  poolrt::PoolOptions options;
  options.cards = {{0, 8 * kMiB}, {0, 8 * kMiB}};
  auto pool = open_pool(options);
  const HeldStream stream(0);
  EXPECT(poolrt_malloc_3(512, 0, nullptr) == nullptr);
  EXPECT_OK(poolrt::register_pair(3, pool, 1));
  EXPECT(poolrt::register_pair(3, pool, 0) == poolrt::kInvalidValue);
  EXPECT(poolrt::register_pair(16, pool, 0) == poolrt::kInvalidValue);
  EXPECT(poolrt::register_pair(4, pool, 2) == poolrt::kInvalidValue);
  void* pointer = poolrt_malloc_3(4 * kMiB, 0, stream.get());
  EXPECT((extents_of(*pool, reinterpret_cast<Address>(pointer)) == std::vector<poolrt::Piece>{{1, 4 * kMiB}}));
  EXPECT(poolrt_malloc_3(64 * kMiB, 0, nullptr) == nullptr && poolrt_malloc_3(-1, 0, nullptr) == nullptr);
  poolrt_free_3(pointer, 4 * kMiB, 0, stream.get());
  EXPECT(pool->stats().deferred_nbytes == 4 * kMiB);
  stream.pass();
  EXPECT_OK(poolrt::unregister_pair(3));
  EXPECT(poolrt::unregister_pair(3) == poolrt::kInvalidValue);
  EXPECT(poolrt_malloc_3(512, 0, nullptr) == nullptr);
  close(*pool);
}

CASE(a_free_that_cannot_record_drains_instead) {
  auto pool = open_pool({64 * kMiB});
  EXPECT_OK(poolrt::register_pair(3, pool, 0));
  void* pointer = poolrt_malloc_3(4 * kMiB, 0, nullptr);
  const poolrt::Fault fault = {1, 999, 0, 1};
  EXPECT_OK(host().set_fault(&fault));
  poolrt_free_3(pointer, 4 * kMiB, 0, nullptr);
  EXPECT_OK(host().clear_fault());
  EXPECT(pool->stats().live_blocks == 0 && pool->stats().deferred_nbytes == 0);
  EXPECT_OK(poolrt::unregister_pair(3));
  close(*pool);
}

}  // namespace
