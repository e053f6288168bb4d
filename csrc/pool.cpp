#include "pool.hpp"

#include <algorithm>
#include <utility>

#include "pool_message.hpp"
#include "pool_registry.hpp"

namespace poolrt {
namespace {

int next_number() {
  static std::atomic<int> last{0};
  return ++last;
}

}  // namespace

double PoolStats::fragmentation() const {
  if (cached_nbytes == 0) return 0.0;
  return 1.0 - static_cast<double>(largest_free_nbytes) / static_cast<double>(cached_nbytes);
}

// ---- opening

Pool::Pool(const DriverTable& table) : number_(next_number()), driver_(table), deferred_(driver_, tiers_) {}

std::shared_ptr<Pool> Pool::open(const DriverTable& table, const PoolOptions& options, int* status) {
  std::shared_ptr<Pool> pool(new Pool(table), &Pool::abandon);
  pool->chunk_nbytes_ = options.chunk_nbytes;
  pool->cache_limit_nbytes_ = options.cache_limit_nbytes;
  *status = pool->tiers_.open(pool->driver_, options);
  if (*status == kSuccess) return pool;
  set_pool_message("no pool of " + std::to_string(options.cards.size()) + " cards: the " + table.name +
                   " driver answers " + table.status_name(*status) + "; a pool takes 1 to " +
                   std::to_string(kMaxCards) + " cards that the driver has, and lists of peers for all or none");
  return nullptr;
}

int Pool::check_open(int home) const {
  if (closed_) {
    set_pool_message("the pool is closed; make a new one");
    return kNotInitialized;
  }
  if (tiers_.has_card(home)) return kSuccess;
  set_pool_message("the pool has no card " + std::to_string(home) + "; it has " + std::to_string(tiers_.cards()) +
                   ", numbered from 0");
  return kInvalidDevice;
}

// ---- allocating

int Pool::allocate(std::size_t nbytes, int home, Stream stream, Address* address) {
  return allocate_for(tiers_.has_card(home) ? tiers_.ordinal(home) : kHostMemory, nbytes, home, stream, address);
}

int Pool::allocate_for(int device, std::size_t nbytes, int home, Stream stream, Address* address) {
  *address = 0;
  Lock lock(mutex_);
  if (const int status = check_open(home)) return status;
  if (nbytes == 0) return kSuccess;
  if (nbytes > kLargestBlock) return refuse(kOutOfMemory, nbytes, home);
  Block* block = nullptr;
  if (const int status = obtain(lock, request_for(nbytes, home, stream), &block)) return refuse(status, nbytes, home);
  hand_out(*block, nbytes, device);
  *address = block->address;
  return kSuccess;
}

Pool::Request Pool::request_for(std::size_t nbytes, int home, Stream stream) const {
  const std::size_t granule = tiers_.granule_nbytes();
  if (nbytes > kLargestSharing) {
    const std::size_t whole = rounded_up(nbytes, granule);
    return {whole, whole, home, stream, false};
  }
  return {rounded_up(nbytes, kSmallestBlock), rounded_up(kSharedSegment, granule), home, stream, true};
}

int Pool::obtain(Lock& lock, const Request& want, Block** block) {
  std::unique_ptr<Segment> fresh;
  int status = kTryAgain;
  while (status == kTryAgain) {
    if (const int closed = check_open(want.home)) return closed;
    *block = reuse(want, tiers_.room(want.home));
    if (*block != nullptr) {
      ++hits_;
      return kSuccess;
    }
    if (collect_passed(/*oldest_only=*/false)) continue;
    status = try_segment(lock, want.segment_nbytes, want.home, &fresh);
  }
  if (status == kSuccess) {
    ++misses_;
    *block = carve(*keep(std::move(fresh)), want);
    return kSuccess;
  }
  // The home card may be full of what is not the pool's: then what is free further away will do.
  if (status == kOutOfMemory) *block = reuse(want, /*home_room=*/0);
  if (*block == nullptr) return status;
  ++hits_;
  return kSuccess;
}

Block* Pool::reuse(const Request& want, std::size_t home_room) {
  if (want.shares) {
    if (Block* block = holes_.take(want.home, want.block_nbytes, /*far_too=*/false)) return block;
  }
  if (Segment* segment = cache_.take(want.home, want.segment_nbytes, home_room)) return carve(*segment, want);
  if (want.shares && home_room < want.segment_nbytes) {
    if (Block* block = holes_.take(want.home, want.block_nbytes, /*far_too=*/true)) return block;
  }
  return deferred_.take_for(want.home, want.stream, want.block_nbytes);
}

Block* Pool::carve(Segment& segment, const Request& want) {
  Block* block = holes_.whole(segment);
  if (want.shares) holes_.cut(block, want.block_nbytes);
  return block;
}

void Pool::hand_out(Block& block, std::size_t requested_nbytes, int device) {
  block.state = BlockState::kLive;
  block.owners = 1;
  block.requested_nbytes = requested_nbytes;
  block.device = device;
  if (spare_live_.empty()) {
    live_.emplace(block.address, &block);
  } else {
    spare_live_.key() = block.address;
    spare_live_.mapped() = &block;
    live_.insert(std::move(spare_live_));
  }
  live_nbytes_ += block.nbytes;
  peak_live_nbytes_ = std::max(peak_live_nbytes_, live_nbytes_);
  requested_nbytes_ += requested_nbytes;
  spilled_nbytes_ += block.far_nbytes();
  if (live_.size() == 1) pool_activity().fetch_add(1, std::memory_order_relaxed);
}

int Pool::refuse(int status, std::size_t nbytes, int home) {
  if (status == kOutOfMemory) {
    ++refusals_;
    set_pool_message(out_of_memory_message(nbytes, home));
  } else if (status != kNotInitialized) {
    driver_failed(status, sized(nbytes) + " were wanted on card " + std::to_string(home));
  }
  return status;
}

int Pool::driver_failed(int status, const std::string& when) const {
  set_pool_message(std::string("the ") + driver_.name() + " driver answered " + driver_.status_name(status) + " (" +
                   std::to_string(status) + ") when " + when + "; the pool is as it was before, so try again");
  return status;
}

// ---- freeing

int Pool::free(Address address, const std::vector<StreamUse>& uses) {
  if (address == 0) return kSuccess;
  Lock lock(mutex_);
  const auto found = live_.find(address);
  if (found == live_.end() || found->second->owners == 0) {
    set_pool_message("no live block of this pool begins at the address; it was freed already or came from elsewhere");
    return kNotFound;
  }
  Block* block = found->second;
  for (const StreamUse& use : uses) {
    if (const int status = check_open(use.card)) return status;
  }
  if (!uses.empty()) {
    deferred_.destroy_spent();
    if (const int status = deferred_.record(*block, uses)) return driver_failed(status, "a block was freed");
  }
  disown(lock, block);
  return kSuccess;
}

int Pool::free_if_live(Address address) {
  Lock lock(mutex_);
  const auto found = live_.find(address);
  if (found == live_.end() || found->second->owners == 0) return kNotFound;
  disown(lock, found->second);
  return kSuccess;
}

void Pool::disown(Lock& lock, Block* block) {
  ++leaving_threads_;
  if (--block->owners == 0 && !block->segment->moving) finish(block);
  if (!deferred_.empty()) collect_passed(/*oldest_only=*/true);
  keep_within_cache_limit(lock);
  leave(lock);
}

// The lock may have been let go since the thread came: whoever leaves last ends an abandoned pool.
void Pool::leave(Lock& lock) {
  const bool last = --leaving_threads_ == 0 && abandoned_ && live_.empty();
  lock.unlock();
  if (last) delete this;
}

void Pool::finish(Block* block) {
  spare_live_ = live_.extract(block->address);
  live_nbytes_ -= block->nbytes;
  requested_nbytes_ -= block->requested_nbytes;
  spilled_nbytes_ -= block->far_nbytes();
  if (live_.empty()) pool_activity().fetch_sub(1, std::memory_order_relaxed);
  if (block->pending.empty()) {
    take_back(block);
  } else {
    deferred_.insert(block);
  }
}

void Pool::take_back(Block* block) {
  Segment* segment = block->segment;
  if (holes_.give_back(block)) cache_.insert(segment);
}

int Pool::retain(Address address) {
  if (address == 0) return kSuccess;
  const Lock lock(mutex_);
  const auto found = live_.find(address);
  if (found == live_.end() || found->second->owners == 0) return kNotFound;
  ++found->second->owners;
  return kSuccess;
}

// ---- telling

int Pool::find(Address inside, LiveBlock* block) const {
  const Lock lock(mutex_);
  const Block* found = block_at(inside);
  if (found == nullptr) return kNotFound;
  *block = described(*found);
  return kSuccess;
}

int Pool::extents(Address inside, std::vector<Piece>* extents) const {
  const Lock lock(mutex_);
  const Block* found = block_at(inside);
  if (found == nullptr) return kNotFound;
  *extents = found->extents();
  return kSuccess;
}

Block* Pool::block_at(Address inside) const {
  const auto exact = live_.find(inside);
  if (exact != live_.end()) return exact->second;
  auto after = segments_.upper_bound(inside);
  if (after == segments_.begin()) return nullptr;
  Block* block = std::prev(after)->second->first;
  while (block != nullptr && inside >= block->address + block->nbytes) block = block->after;
  return block != nullptr && block->state == BlockState::kLive ? block : nullptr;
}

LiveBlock Pool::described(const Block& block) const {
  return {block.address, block.nbytes, block.requested_nbytes, block.segment->home(), block.device, block.owners};
}

std::vector<LiveBlock> Pool::live() const {
  const Lock lock(mutex_);
  std::vector<LiveBlock> blocks;
  for (const auto& [address, block] : live_) blocks.push_back(described(*block));
  std::sort(blocks.begin(), blocks.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  return blocks;
}

std::size_t Pool::cached_nbytes() const {
  return cache_.nbytes() + holes_.nbytes() + leaving_nbytes_ + condemned_nbytes();
}

std::size_t Pool::condemned_nbytes() const {
  std::size_t sum = 0;
  for (const auto& segment : condemned_) sum += segment->held_nbytes();
  return sum;
}

PoolStats Pool::stats() {
  Lock lock(mutex_);
  collect_passed(/*oldest_only=*/false);
  keep_within_cache_limit(lock);
  PoolStats now{};
  now.tiers = tiers_.use();
  now.live_nbytes = live_nbytes_;
  now.cached_nbytes = cached_nbytes();
  now.deferred_nbytes = deferred_.nbytes();
  now.requested_nbytes = requested_nbytes_;
  now.spilled_nbytes = spilled_nbytes_;
  now.condemned_nbytes = condemned_nbytes();
  now.largest_free_nbytes = std::max(cache_.largest(), holes_.largest());
  now.peak_live_nbytes = peak_live_nbytes_;
  now.live_blocks = live_.size();
  now.hits = hits_;
  now.misses = misses_;
  now.refusals = refusals_;
  now.evictions = evictions_;
  now.driver_calls = driver_.calls();
  now.lost_handles = driver_.lost();
  return now;
}

std::string Pool::out_of_memory_message(std::size_t nbytes, int home) const {
  std::string text = "pool is out of memory: " + sized(nbytes) + " wanted on card " + std::to_string(home) + ";";
  for (const TierUse& tier : tiers_.use()) {
    if (tier.place == kHostMemory && tier.limit_nbytes == 0 && tier.mapped_nbytes == 0) {
      text += " host off;";
      continue;
    }
    text += " " + place_name(tier.place) + (tier.place == home ? " (home) " : " ");
    text += sized_of(tier.mapped_nbytes, tier.limit_nbytes) + " used";
    text += tiers_.reaches(home, tier.place) ? "," : " (out of reach),";
  }
  text.back() = ';';
  text += " " + sized(live_nbytes_) + " live, " + sized(cached_nbytes()) + " cached where it does not help, " +
          sized(deferred_.nbytes()) + " waiting for streams. Free tensors, raise a limit, or give the pool host memory";
  return text;
}

}  // namespace poolrt
