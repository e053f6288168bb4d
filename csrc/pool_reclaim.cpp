// How a pool comes by room: new segments, cached ones that give up their place, and waiting for what is on its way.
#include <algorithm>
#include <utility>

#include "pool.hpp"
#include "pool_message.hpp"
#include "pool_registry.hpp"

namespace poolrt {
namespace {

constexpr int kNowhere = -2;  // neither a card nor the host

}  // namespace

// ---- getting a segment

int Pool::obtain_segment(Lock& lock, std::size_t nbytes, int home, std::unique_ptr<Segment>* fresh) {
  int status = kTryAgain;
  while (status == kTryAgain) {
    if (collect_passed(/*oldest_only=*/false)) continue;
    status = try_segment(lock, nbytes, home, fresh);
  }
  return status;
}

int Pool::try_segment(Lock& lock, std::size_t nbytes, int home, std::unique_ptr<Segment>* fresh) {
  if (const int status = check_open(home)) return status;
  const std::vector<Segment*> leaving = in_the_way(nbytes, home);
  if (!leaving.empty()) {
    const int status = retire(lock, leaving);
    return status == kSuccess ? kTryAgain : status;
  }
  auto segment = std::make_unique<Segment>(driver_, tiers_, home);
  int blocked = kNowhere;
  const auto may_be_freed = [this](int place) { return cache_.any_at(place); };
  const int status = segment->build(nbytes, chunk_nbytes_, may_be_freed, &blocked);
  if (status == kSuccess) {
    *fresh = std::move(segment);
    return kSuccess;
  }
  demolish(std::move(segment));
  return status == kOutOfMemory ? wait_for_room(lock, home, blocked) : status;
}

// Cached segments that hold room where the new one would go first: memory that nobody uses never drives memory in use
// from its home to a peer, or from a peer to the host.
std::vector<Segment*> Pool::in_the_way(std::size_t nbytes, int home) {
  if (cache_.empty()) return {};
  for (const int place : tiers_.order_from(home)) {
    const std::size_t room = tiers_.room(place) / tiers_.granule_nbytes() * tiers_.granule_nbytes();
    if (room >= nbytes) return {};
    std::vector<Segment*> found = cache_.oldest_at(place, nbytes - room);
    if (!found.empty()) return found;
    nbytes -= room;
  }
  return {};
}

int Pool::wait_for_room(Lock& lock, int home, int blocked) {
  if (blocked != kNowhere) {
    const int status = retire(lock, cache_.oldest_at(blocked, 1));
    return status == kSuccess ? kTryAgain : status;
  }
  if (leaving_count_ != 0) {
    changed_.wait(lock);
    return kTryAgain;
  }
  const std::size_t before = returned_nbytes_;
  retry_condemned();
  if (returned_nbytes_ != before) return kTryAgain;
  if (deferred_.empty()) return kOutOfMemory;
  const int status = wait_for_deferred(lock, home);
  return status == kSuccess ? kTryAgain : status;
}

// ---- giving segments back to the driver

Segment* Pool::keep(std::unique_ptr<Segment> segment) {
  Segment* kept = segment.get();
  register_range(kept->address(), kept->nbytes(), this);
  segments_.emplace(kept->address(), std::move(segment));
  return kept;
}

std::unique_ptr<Segment> Pool::remove(Segment* segment) {
  forget_range(segment->address());
  return std::move(segments_.extract(segment->address()).mapped());
}

int Pool::retire(Lock& lock, const std::vector<Segment*>& segments) {
  if (segments.empty()) return kSuccess;
  Segments leaving;
  std::vector<int> ordinals;
  std::size_t nbytes = 0;
  for (Segment* segment : segments) {
    cache_.erase(segment);
    ordinals.insert(ordinals.end(), segment->ordinals_with_access().begin(), segment->ordinals_with_access().end());
    nbytes += segment->nbytes();
    leaving.push_back(remove(segment));
  }
  leaving_nbytes_ += nbytes;
  ++leaving_count_;
  int status = drain(lock, ordinals);
  leaving_nbytes_ -= nbytes;
  --leaving_count_;
  const bool drained = status == kSuccess;
  for (auto& segment : leaving) {
    if (!drained) {
      cache_.insert_as_oldest(keep(std::move(segment)));
    } else if (const int failed = demolish(std::move(segment))) {
      status = failed;
    } else {
      ++evictions_;
    }
  }
  changed_.notify_all();
  return status;
}

// Without the lock: a card may have long to go, and others need not wait for it.
int Pool::drain(Lock& lock, std::vector<int> ordinals) {
  std::sort(ordinals.begin(), ordinals.end());
  ordinals.erase(std::unique(ordinals.begin(), ordinals.end()), ordinals.end());
  int status = kSuccess;
  lock.unlock();
  for (const int ordinal : ordinals) {
    status = driver_->drain(ordinal);
    if (status == kInvalidDevice) status = kSuccess;  // a virtual card that was taken away: it does nothing any more
    if (status != kSuccess) break;
  }
  lock.lock();
  return status;
}

int Pool::demolish(std::unique_ptr<Segment> segment) {
  const std::size_t before = segment->held_nbytes();
  const int status = segment->demolish();
  returned_nbytes_ += before - segment->held_nbytes();
  if (status != kSuccess) condemned_.push_back(std::move(segment));
  return status;
}

int Pool::retry_condemned() {
  int status = kSuccess;
  for (auto& segment : std::exchange(condemned_, {})) {
    if (const int failed = demolish(std::move(segment))) status = failed;
  }
  return status;
}

int Pool::keep_within_cache_limit(Lock& lock) {
  while (cache_.nbytes() > cache_limit_nbytes_) {
    if (const int status = retire(lock, cache_.oldest(cache_.nbytes() - cache_limit_nbytes_))) return status;
  }
  return kSuccess;
}

// ---- deferred blocks

bool Pool::collect_passed(bool oldest_only) {
  const std::vector<Block*> passed = deferred_.take_passed(oldest_only);
  for (Block* block : passed) take_back(block);
  return !passed.empty();
}

int Pool::wait_for_deferred(Lock& lock, int home) {
  const int card = deferred_.card_to_wait_for(home);
  if (card == kHostMemory) return kSuccess;
  const std::uint64_t recorded = deferred_.last_number();
  if (const int status = drain(lock, {tiers_.ordinal(card)})) return status;
  deferred_.passed(card, recorded);
  return kSuccess;
}

// ---- trimming and closing

int Pool::trim(std::size_t* nbytes) {
  Lock lock(mutex_);
  const std::size_t before = returned_nbytes_;
  collect_passed(/*oldest_only=*/false);
  int status = retry_condemned();
  if (const int failed = retire(lock, cache_.all())) status = failed;
  if (const int failed = deferred_.destroy_spent()) status = failed;
  *nbytes = returned_nbytes_ - before;
  return status == kSuccess ? kSuccess : driver_failed(status, "cached memory was given back");
}

int Pool::set_limit(int place, std::size_t nbytes) {
  const Lock lock(mutex_);
  const int status = tiers_.set_limit(place, nbytes);
  if (status == kInvalidDevice) check_open(place);
  if (status == kNotSupported) set_pool_message("this driver cannot make host memory that cards can map");
  return status;
}

int Pool::set_cache_limit(std::size_t nbytes) {
  Lock lock(mutex_);
  cache_limit_nbytes_ = nbytes;
  return keep_within_cache_limit(lock);
}

int Pool::close(std::vector<LiveBlock>* left) {
  left->clear();
  Lock lock(mutex_);
  if (!live_.empty()) {
    for (const auto& [address, block] : live_) left->push_back(described(*block));
    set_pool_message(std::to_string(left->size()) + " blocks of the pool are still in use; free them first");
    return kInvalidValue;
  }
  if (closed_) return kSuccess;
  closed_ = true;
  const int status = release_everything(lock);
  if (status == kSuccess) return kSuccess;
  closed_ = false;
  return driver_failed(status, "the pool was closed");
}

int Pool::release_everything(Lock& lock) {
  while (leaving_count_ != 0) changed_.wait(lock);
  while (!deferred_.empty()) {
    collect_passed(/*oldest_only=*/false);
    if (const int status = wait_for_deferred(lock, /*home=*/0)) return status;
  }
  const int retired = retire(lock, cache_.all());
  int status = retry_condemned();
  if (!cache_.empty()) status = retired;
  if (const int failed = deferred_.destroy_spent()) status = failed;
  return status;
}

void Pool::abandon(Pool* pool) {
  Lock lock(pool->mutex_);
  ++pool->leaving_threads_;
  pool->abandoned_ = true;
  if (!pool->live_.empty()) {
    pool->retire(lock, pool->cache_.all());
    pool->deferred_.destroy_spent();
  }
  pool->leave(lock);
}

// What the driver does not take back here is tried once more by the destructors of the handles.
Pool::~Pool() {
  Lock lock(mutex_);
  closed_ = true;
  release_everything(lock);
  for (const auto& [address, segment] : segments_) {
    forget_range(address);
    for (Block* block = segment->first; block != nullptr;) delete std::exchange(block, block->after);
  }
}

}  // namespace poolrt
