// A segment: one range of addresses whose pages lie on one place after another.
//
//     address                                                    address + nbytes
//     | extent: home card | extent: peer | extent: peer | extent: host |
//
// It is built step by step and torn down step by step; where a step fails, what is there stays in the handles, and
// demolish() goes on from there at the next try.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <utility>
#include <vector>

#include "driver.hpp"
#include "pool_placement.hpp"
#include "pool_tiers.hpp"
#include "vmm.hpp"

namespace poolrt {

class Segment;
struct Block;

// By (home, size): how cached segments are found.
using SegmentIndex = std::multimap<std::pair<int, std::size_t>, Segment*>;

class Segment {
 public:
  Segment(const CountedDriver& driver, Tiers& tiers, int home) : driver_(&driver), tiers_(&tiers), home_(home) {}

  // Pages in the order of the placement, mapped one after another, with access for every card that reaches them all.
  // kOutOfMemory, with `blocked` naming the place, where the driver refuses a place that `may_be_freed` says could be
  // made free; where it could not, the next place is taken. After any failure: demolish().
  int build(std::size_t nbytes, std::size_t chunk_nbytes, const std::function<bool(int place)>& may_be_freed,
            int* blocked);

  // The cards with access must have been drained. Nothing is left after kSuccess.
  int demolish();

  // Copies the bytes of `source`, a segment of the same size; the driver copies one extent to one extent at a time.
  int copy_from(const Segment& source) const;

  // Takes over the pages and the home of `fresh`, at its own addresses; `fresh` is left with the pages that were here.
  // After a failure both are as they were.
  int exchange_pages(Segment& fresh);

  Address address() const { return range_.address(); }
  std::size_t nbytes() const { return range_.nbytes(); }
  int home() const { return home_; }
  const std::vector<Piece>& extents() const { return extents_; }
  const std::vector<int>& ordinals_with_access() const { return access_; }

  std::size_t held_nbytes() const;  // pages not yet released
  std::size_t nbytes_at(int place) const;
  std::size_t far_nbytes() const { return far_nbytes_; }  // not on its home

  // The extents of one part of it, in address order.
  std::vector<Piece> extents_of(std::size_t offset, std::size_t nbytes) const;

  // For the pool that holds it.
  Block* first = nullptr;  // of the blocks it is cut into, in address order; null while it is cached
  bool moving = false;
  SegmentIndex::iterator in_index{};
  std::list<Segment*>::iterator in_age{};

 private:
  int make_pages(std::size_t nbytes, std::size_t chunk_nbytes, const std::function<bool(int place)>& may_be_freed,
                 int* blocked);
  int map_pages(const std::vector<Allocation>& pages, const std::vector<Piece>& extents,
                std::vector<Mapping>& mappings) const;
  int grant_access(const std::vector<int>& ordinals) const;
  int restore_mappings(std::vector<Mapping>& remapped);
  int try_restore(std::vector<Mapping>& remapped);

  const CountedDriver* driver_;
  Tiers* tiers_;
  int home_;
  std::vector<Piece> extents_;
  std::vector<Allocation> pages_;  // one per extent
  Reservation range_;
  std::vector<Mapping> mappings_;
  std::vector<int> access_;
  std::size_t far_nbytes_ = 0;
};

}  // namespace poolrt
