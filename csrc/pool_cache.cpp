#include "pool_cache.hpp"

#include <algorithm>
#include <utility>

namespace poolrt {

void SegmentCache::insert(Segment* segment) {
  list_newest();
  newest_ = segment;
  nbytes_ += segment->nbytes();
}

void SegmentCache::insert_as_oldest(Segment* segment) {
  insert_at(by_age_.begin(), segment);
  nbytes_ += segment->nbytes();
}

void SegmentCache::list_newest() {
  if (newest_ == nullptr) return;
  insert_at(by_age_.end(), newest_);
  newest_ = nullptr;
}

void SegmentCache::insert_at(std::list<Segment*>::iterator place, Segment* segment) {
  if (spare_ages_.empty()) {
    segment->in_age = by_age_.insert(place, segment);
  } else {
    segment->in_age = spare_ages_.begin();
    *segment->in_age = segment;
    by_age_.splice(place, spare_ages_, segment->in_age);
  }
  const std::pair<int, std::size_t> key(segment->home(), segment->nbytes());
  if (spare_index_.empty()) {
    segment->in_index = by_size_.emplace(key, segment);
  } else {
    spare_index_.key() = key;
    spare_index_.mapped() = segment;
    segment->in_index = by_size_.insert(std::move(spare_index_));
  }
}

void SegmentCache::erase(Segment* segment) {
  list_newest();
  spare_index_ = by_size_.extract(segment->in_index);
  if (spare_ages_.empty()) {
    spare_ages_.splice(spare_ages_.begin(), by_age_, segment->in_age);
  } else {
    by_age_.erase(segment->in_age);
  }
  nbytes_ -= segment->nbytes();
}

Segment* SegmentCache::take(int home, std::size_t nbytes, std::size_t home_room_nbytes) {
  if (newest_ != nullptr && newest_->nbytes() == nbytes && newest_->home() == home && newest_->far_nbytes() == 0) {
    nbytes_ -= nbytes;
    return std::exchange(newest_, nullptr);
  }
  list_newest();
  Segment* spilled = nullptr;
  const std::pair<int, std::size_t> largest(home, nbytes + nbytes / 8);
  for (auto it = by_size_.lower_bound({home, nbytes}); it != by_size_.end() && it->first <= largest; ++it) {
    const std::size_t far = it->second->far_nbytes();
    if (far == 0) {
      Segment* found = it->second;
      erase(found);
      return found;
    }
    if (spilled == nullptr && far > home_room_nbytes) spilled = it->second;
  }
  if (spilled != nullptr) erase(spilled);
  return spilled;
}

std::vector<Segment*> SegmentCache::oldest_at(int place, std::size_t nbytes) {
  list_newest();
  std::vector<Segment*> found;
  std::size_t sum = 0;
  for (Segment* segment : by_age_) {
    if (sum >= nbytes) break;
    const std::size_t there = segment->nbytes_at(place);
    if (there == 0) continue;
    found.push_back(segment);
    sum += there;
  }
  return found;
}

std::vector<Segment*> SegmentCache::oldest_until(std::size_t nbytes) {
  list_newest();
  std::vector<Segment*> found;
  std::size_t sum = 0;
  for (Segment* segment : by_age_) {
    if (sum >= nbytes) break;
    found.push_back(segment);
    sum += segment->nbytes();
  }
  return found;
}

bool SegmentCache::any_at(int place) {
  list_newest();
  return std::any_of(by_age_.begin(), by_age_.end(),
                     [place](const Segment* one) { return one->nbytes_at(place) != 0; });
}

std::size_t SegmentCache::largest() {
  list_newest();
  std::size_t largest = 0;
  for (const Segment* segment : by_age_) largest = std::max(largest, segment->nbytes());
  return largest;
}

}  // namespace poolrt
