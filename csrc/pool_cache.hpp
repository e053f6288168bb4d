// Segments that nobody uses and that stay mapped for the next request of their home and size.
#pragma once

#include <cstddef>
#include <list>
#include <vector>

#include "pool_segment.hpp"

namespace poolrt {

class SegmentCache {
 public:
  void insert(Segment* segment);
  void insert_as_oldest(Segment* segment);
  void erase(Segment* segment);

  // The best fit for `nbytes` at `home` with at most an eighth wasted, or null. A segment that lies partly elsewhere
  // is not worth using once `home_room_nbytes` would hold what it has elsewhere: it is better built anew.
  Segment* take(int home, std::size_t nbytes, std::size_t home_room_nbytes);

  // The least recently used segments that have `nbytes` at `place` between them, or all that have any there.
  std::vector<Segment*> oldest_at(int place, std::size_t nbytes);
  std::vector<Segment*> oldest(std::size_t nbytes) { return oldest_until(nbytes); }  // wherever they lie
  std::vector<Segment*> all() { return oldest_until(nbytes_); }
  bool any_at(int place);

  bool empty() const { return nbytes_ == 0; }
  std::size_t nbytes() const { return nbytes_; }
  std::size_t largest();

 private:
  void insert_at(std::list<Segment*>::iterator place, Segment* segment);
  void list_newest();
  std::vector<Segment*> oldest_until(std::size_t nbytes);

  // What came last is most often asked for next: it is entered in the lists only when another one comes, or when
  // somebody looks at them.
  Segment* newest_ = nullptr;

  SegmentIndex by_size_;
  std::list<Segment*> by_age_;  // the least recently used first
  // One entry's nodes are kept, so that a hit allocates nothing.
  SegmentIndex::node_type spare_index_;
  std::list<Segment*> spare_ages_;
  std::size_t nbytes_ = 0;
};

}  // namespace poolrt
