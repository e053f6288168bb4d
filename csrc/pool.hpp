// The pool: memory of several cards and the host handed out as blocks, whatever card the pages lie on.
//
//     allocate:   a block that is free already  ->  one whose streams have passed  ->  a new segment, for which cached
//                 segments give up their place  ->  waiting for what others give back  ->  out of memory
//     free:       | live | -> | deferred until its events have passed | -> | hole or cached segment | -> | unmapped |
//
// Every function answers a poolrt::Status, leaves the pool as it was where it failed, and may be called from any
// thread; what went wrong is told by last_pool_message() on the same thread. The lock is let go while cards are
// drained.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver.hpp"
#include "pool_blocks.hpp"
#include "pool_cache.hpp"
#include "pool_deferred.hpp"
#include "pool_segment.hpp"
#include "pool_tiers.hpp"
#include "vmm.hpp"

namespace poolrt {

// At any moment: the sum of mapped over the tiers == live + cached + deferred.
struct PoolStats {
  std::vector<TierUse> tiers;    // the cards in order, then the host
  std::size_t live_nbytes;       // handed out, as rounded
  std::size_t cached_nbytes;     // mapped and free, holes and segments on their way out included
  std::size_t deferred_nbytes;   // given back, but streams may still use it
  std::size_t requested_nbytes;  // of the live blocks, as asked for
  std::size_t spilled_nbytes;    // of the live blocks, not on their home
  std::size_t condemned_nbytes;  // of the cached: the driver failed to take it back so far
  std::size_t largest_free_nbytes;
  std::size_t peak_live_nbytes;
  std::uint64_t live_blocks;
  std::uint64_t hits;       // served from what was mapped already
  std::uint64_t misses;     // needed a new segment
  std::uint64_t refusals;   // out of memory
  std::uint64_t evictions;  // cached segments given back to the driver
  std::uint64_t driver_calls;
  std::uint64_t lost_handles;  // that a destructor could not give back

  double fragmentation() const;  // 1 - largest free piece / cached; 0 where nothing is cached
};

struct LiveBlock {
  Address address;
  std::size_t nbytes;
  std::size_t requested_nbytes;
  int home;
  int device;
  int owners;
};

class Pool {
 public:
  // Null, with the driver's status, if the driver cannot tell what it has. The table must outlive the pool. Blocks may
  // outlive the last pointer to their pool: it goes with the last of them.
  static std::shared_ptr<Pool> open(const DriverTable& table, const PoolOptions& options, int* status);
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int number() const { return number_; }
  int cards() const { return tiers_.cards(); }
  int ordinal(int card) const { return tiers_.ordinal(card); }
  int card_of_ordinal(int ordinal) const { return tiers_.card_of_ordinal(ordinal); }

  // A block with one owner; of 0 bytes: address 0. Work enqueued in `stream` of home's card may use it at once.
  // `device`: the ordinal to remember with the block (home's own unless given).
  int allocate(std::size_t nbytes, int home, Stream stream, Address* address);
  int allocate_for(int device, std::size_t nbytes, int home, Stream stream, Address* address);

  // One owner less; with the last one the block is free, as soon as the work that is in `uses` now is done. kNotFound
  // for an address that is not a live block's; after a failure the block is live as before.
  int free(Address address, const std::vector<StreamUse>& uses = {});
  int free_if_live(Address address);  // as free without uses, but without a message where there is no such block
  int retain(Address address);

  int find(Address inside, LiveBlock* block) const;                // the block an address lies in
  int extents(Address inside, std::vector<Piece>* extents) const;  // of that block, in address order
  std::vector<LiveBlock> live() const;

  // New pages for a block at the same addresses, as near to `home` as there is room. Nobody may use the block
  // meanwhile. kNotSupported for a small block that shares its segment with others.
  int move(Address address, int home);

  int drain_card(int card) const { return driver_->drain(tiers_.ordinal(card)); }

  int trim(std::size_t* nbytes);  // gives everything cached back to the driver
  int set_limit(int place, std::size_t nbytes);
  int set_cache_limit(std::size_t nbytes);
  PoolStats stats();

  // Gives everything back; refuses, with the blocks in `left`, while some live. Nothing is granted afterwards.
  int close(std::vector<LiveBlock>* left);

  // Recounts everything from the blocks up and compares: the first thing that does not add up, or "". For tests.
  std::string audit() const;

 private:
  using Lock = std::unique_lock<std::mutex>;
  using Segments = std::vector<std::unique_ptr<Segment>>;

  struct Request {
    std::size_t block_nbytes;
    std::size_t segment_nbytes;
    int home;
    Stream stream;
    bool shares;  // its segment with others
  };

  explicit Pool(const DriverTable& table);
  ~Pool();
  static void abandon(Pool* pool);
  int check_open(int home) const;
  Request request_for(std::size_t nbytes, int home, Stream stream) const;

  // Getting memory. kTryAgain: something changed meanwhile, look again from the start.
  static constexpr int kTryAgain = -1;
  int obtain(Lock& lock, const Request& want, Block** block);
  Block* reuse(const Request& want, std::size_t home_room);
  Block* carve(Segment& segment, const Request& want);
  int obtain_segment(Lock& lock, std::size_t nbytes, int home, std::unique_ptr<Segment>* fresh);
  int try_segment(Lock& lock, std::size_t nbytes, int home, std::unique_ptr<Segment>* fresh);
  std::vector<Segment*> in_the_way(std::size_t nbytes, int home);
  int wait_for_room(Lock& lock, int home, int blocked);
  void hand_out(Block& block, std::size_t requested_nbytes, int device);
  int refuse(int status, std::size_t nbytes, int home);
  int driver_failed(int status, const std::string& when) const;

  // Giving memory back.
  void disown(Lock& lock, Block* block);  // lets go of the lock
  void leave(Lock& lock);                 // lets go of the lock; the last one takes an abandoned, empty pool along
  void finish(Block* block);
  void take_back(Block* block);
  bool collect_passed(bool oldest_only);
  int keep_within_cache_limit(Lock& lock);
  int retire(Lock& lock, const std::vector<Segment*>& segments);
  int drain(Lock& lock, std::vector<int> ordinals);
  int demolish(std::unique_ptr<Segment> segment);  // what resists is condemned
  int retry_condemned();
  int wait_for_deferred(Lock& lock, int home);
  int release_everything(Lock& lock);

  // Moving.
  int check_movable(const Block& block) const;
  int move_pinned(Lock& lock, Segment& segment, int home);
  int fill_unlocked(Lock& lock, const Segment& fresh, const Segment& old);

  Segment* keep(std::unique_ptr<Segment> segment);
  std::unique_ptr<Segment> remove(Segment* segment);
  Block* block_at(Address inside) const;
  LiveBlock described(const Block& block) const;
  std::size_t cached_nbytes() const;
  std::size_t condemned_nbytes() const;
  std::string out_of_memory_message(std::size_t nbytes, int home) const;

  const int number_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // something that was on its way out is out, or a move has ended
  CountedDriver driver_;
  Tiers tiers_;
  std::size_t chunk_nbytes_ = 0;
  std::size_t cache_limit_nbytes_ = SIZE_MAX;

  std::map<Address, std::unique_ptr<Segment>> segments_;  // by their first address: in use and cached
  SegmentCache cache_;
  Holes holes_;
  Deferred deferred_;
  Segments condemned_;
  std::unordered_map<Address, Block*> live_;
  std::unordered_map<Address, Block*>::node_type spare_live_;
  std::size_t leaving_nbytes_ = 0;  // in neither of the above, still mapped
  int leaving_count_ = 0;

  bool closed_ = false;
  bool abandoned_ = false;
  int leaving_threads_ = 0;  // that free a block or abandon the pool at this moment
  std::size_t live_nbytes_ = 0;
  std::size_t peak_live_nbytes_ = 0;
  std::size_t requested_nbytes_ = 0;
  std::size_t spilled_nbytes_ = 0;
  std::uint64_t hits_ = 0;
  std::uint64_t misses_ = 0;
  std::uint64_t refusals_ = 0;
  std::uint64_t evictions_ = 0;
  std::size_t returned_nbytes_ = 0;  // to the driver, ever
};

}  // namespace poolrt
