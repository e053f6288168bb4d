#include "pool_segment.hpp"

#include <algorithm>
#include <optional>

namespace poolrt {

int Segment::build(std::size_t nbytes, std::size_t chunk_nbytes, const std::function<bool(int)>& may_be_freed,
                   int* blocked) {
  if (const int status = make_pages(nbytes, chunk_nbytes, may_be_freed, blocked)) return status;
  if (const int status = range_.open(*driver_, nbytes, tiers_->granule_nbytes())) return status;
  if (const int status = map_pages(pages_, extents_, mappings_)) return status;
  access_ = tiers_->with_access(extents_);
  far_nbytes_ = nbytes - nbytes_at(home_);
  return grant_access(access_);
}

int Segment::make_pages(std::size_t nbytes, std::size_t chunk_nbytes, const std::function<bool(int)>& may_be_freed,
                        int* blocked) {
  Placement placement(tiers_->rooms_from(home_), chunk_nbytes, tiers_->granule_nbytes());
  if (!placement.enough_for(nbytes)) return kOutOfMemory;
  while (nbytes != 0) {
    const std::optional<Piece> wanted = placement.next(nbytes);
    if (!wanted) return kOutOfMemory;
    Allocation pages;
    const int status = pages.open(*driver_, tiers_->ordinal(wanted->place), wanted->nbytes);
    if (status == kOutOfMemory) {
      if (placement.refused(*wanted) || !may_be_freed(wanted->place)) continue;
      *blocked = wanted->place;
      return kOutOfMemory;
    }
    if (status != kSuccess) return status;
    placement.granted(*wanted);
    tiers_->charge(wanted->place, wanted->nbytes);
    extents_.push_back(*wanted);
    pages_.push_back(std::move(pages));
    nbytes -= wanted->nbytes;
  }
  return kSuccess;
}

int Segment::map_pages(const std::vector<Allocation>& pages, const std::vector<Piece>& extents,
                       std::vector<Mapping>& mappings) const {
  Address at = range_.address();
  for (std::size_t i = 0; i < extents.size(); ++i) {
    Mapping mapping;
    if (const int status = mapping.open(*driver_, at, extents[i].nbytes, pages[i].pages())) return status;
    mappings.push_back(std::move(mapping));
    at += extents[i].nbytes;
  }
  return kSuccess;
}

int Segment::grant_access(const std::vector<int>& ordinals) const {
  return (*driver_)->set_access(range_.address(), range_.nbytes(), ordinals.data(), static_cast<int>(ordinals.size()));
}

int Segment::demolish() {
  while (!mappings_.empty()) {
    if (const int status = mappings_.back().close()) return status;
    mappings_.pop_back();
  }
  if (const int status = range_.close()) return status;
  while (!pages_.empty()) {
    if (const int status = pages_.back().close()) return status;
    tiers_->discharge(extents_.back().place, extents_.back().nbytes);
    pages_.pop_back();
    extents_.pop_back();
  }
  return kSuccess;
}

int Segment::copy_from(const Segment& source) const {
  std::size_t offset = 0;
  auto here = extents_.begin();
  auto there = source.extents_.begin();
  std::size_t left_here = here->nbytes;
  std::size_t left_there = there->nbytes;
  while (offset < nbytes()) {
    const std::size_t step = std::min(left_here, left_there);
    if (const int status = (*driver_)->copy(address() + offset, source.address() + offset, step)) return status;
    offset += step;
    left_here -= step;
    left_there -= step;
    if (left_here == 0 && ++here != extents_.end()) left_here = here->nbytes;
    if (left_there == 0 && ++there != source.extents_.end()) left_there = there->nbytes;
  }
  return kSuccess;
}

//     range:         | old pages |   ->  |  nothing  |  ->  | new pages |       fresh's own range maps the new pages
//     all fresh's range: | new pages |       | new pages |      | new pages |       the time and goes when it is
//     demolished
int Segment::exchange_pages(Segment& fresh) {
  int status = kSuccess;
  for (Mapping& mapping : mappings_) {
    if ((status = mapping.close()) != kSuccess) break;
  }
  std::vector<Mapping> remapped;
  if (status == kSuccess) status = map_pages(fresh.pages_, fresh.extents_, remapped);
  if (status == kSuccess) status = grant_access(fresh.access_);
  if (status != kSuccess) {
    restore_mappings(remapped);
    return status;
  }
  mappings_ = std::move(remapped);
  std::swap(extents_, fresh.extents_);
  std::swap(pages_, fresh.pages_);
  std::swap(access_, fresh.access_);
  std::swap(home_, fresh.home_);
  std::swap(far_nbytes_, fresh.far_nbytes_);
  return kSuccess;
}

// A block whose addresses lead nowhere is lost to its owner, so a driver that stumbles is asked again and again.
int Segment::restore_mappings(std::vector<Mapping>& remapped) {
  constexpr int kTries = 100;
  int status = kSuccess;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    status = try_restore(remapped);
    if (status == kSuccess) break;
  }
  return status;
}

int Segment::try_restore(std::vector<Mapping>& remapped) {
  while (!remapped.empty()) {
    if (const int status = remapped.back().close()) return status;
    remapped.pop_back();
  }
  Address at = range_.address();
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (mappings_[i].empty()) {
      if (const int status = mappings_[i].open(*driver_, at, extents_[i].nbytes, pages_[i].pages())) return status;
    }
    at += extents_[i].nbytes;
  }
  return grant_access(access_);
}

std::size_t Segment::held_nbytes() const {
  std::size_t sum = 0;
  for (const Piece& extent : extents_) sum += extent.nbytes;
  return sum;
}

std::size_t Segment::nbytes_at(int place) const {
  std::size_t sum = 0;
  for (const Piece& extent : extents_) sum += extent.place == place ? extent.nbytes : 0;
  return sum;
}

std::vector<Piece> Segment::extents_of(std::size_t offset, std::size_t nbytes) const {
  std::vector<Piece> parts;
  std::size_t begin = 0;
  for (const Piece& extent : extents_) {
    const std::size_t end = begin + extent.nbytes;
    const std::size_t from = std::max(begin, offset);
    const std::size_t to = std::min(end, offset + nbytes);
    if (from < to) parts.push_back({extent.place, to - from});
    begin = end;
  }
  return parts;
}

}  // namespace poolrt
