// Blocks: what a segment is cut into. A large block is its whole segment; smaller ones share a segment, and between
// them lie holes, found by best fit and joined with their neighbours when a block comes back.
//
//     segment:   | live 512 | hole 1536 | live 1024 | hole ... |        first -> after -> after -> after
#pragma once

#include <cstddef>
#include <memory>
#include <set>
#include <vector>

#include "driver.hpp"
#include "pool_segment.hpp"

namespace poolrt {

inline constexpr std::size_t kSmallestBlock = 512;
inline constexpr std::size_t kLargestSharing = std::size_t{1} << 20;  // larger blocks have their own segment
inline constexpr std::size_t kSharedSegment = std::size_t{2} << 20;   // rounded up to granules
inline constexpr std::size_t kLargestBlock = SIZE_MAX / 4;            // so that rounding up never overflows

// Steps are powers of two almost always, and a division takes longer than the rest of a cached request's arithmetic.
inline std::size_t rounded_up(std::size_t nbytes, std::size_t step) {
  const std::size_t up = nbytes + step - 1;
  return (step & (step - 1)) == 0 ? up & ~(step - 1) : up / step * step;
}

// Work that may still touch a block that was given back.
struct PendingUse {
  int card;  // index in the pool
  Stream stream;
  Event event;
  std::uint64_t number;  // events are numbered as they are recorded
};

enum class BlockState { kHole, kLive, kDeferred };

struct Block {
  Block(Segment* segment, Address address, std::size_t nbytes) : segment(segment), address(address), nbytes(nbytes) {}

  Segment* segment;
  Address address;
  std::size_t nbytes;
  BlockState state = BlockState::kHole;
  int owners = 0;
  std::size_t requested_nbytes = 0;
  int device = 0;  // the driver's ordinal of the card it was asked for: what a tensor on it says, wherever it lies
  Block* before = nullptr;
  Block* after = nullptr;
  std::vector<PendingUse> pending;

  std::size_t offset() const { return address - segment->address(); }
  bool whole_segment() const { return before == nullptr && after == nullptr; }
  std::vector<Piece> extents() const { return segment->extents_of(offset(), nbytes); }
  std::size_t far_nbytes() const;  // not on its home
};

// Owns no block but a spare one: every segment leads to its own.
class Holes {
 public:
  // A block that spans the segment.
  Block* whole(Segment& segment);

  // A block of exactly `nbytes` cut from the smallest hole that holds it, or null. Segments that lie wholly on their
  // home are preferred; others serve only if `far_too`.
  Block* take(int home, std::size_t nbytes, bool far_too);

  // Makes `block` a hole. True if its segment is one hole now: then that hole is forgotten and the segment is the
  // caller's, with no block.
  bool give_back(Block* block);

  // Takes a part of `block`, which is no hole, off its end and makes it a hole.
  void cut(Block* block, std::size_t nbytes);

  // While a segment moves, its holes are out of reach.
  std::size_t withdraw(const Segment& segment);
  void restore(const Segment& segment);

  std::size_t nbytes() const { return nbytes_; }
  std::size_t largest() const;

 private:
  struct Key {
    int home;
    bool far;
    std::size_t nbytes;
    Address address;
    Block* block;
    bool operator<(const Key& other) const;
  };
  static Key key_of(Block* block);
  Block* best_fit(int home, bool far, std::size_t nbytes) const;
  void insert(Block* block);
  void erase(Block* block);

  std::set<Key> holes_;
  std::size_t nbytes_ = 0;
  std::unique_ptr<Block> spare_;  // of the last segment that came back whole
};

}  // namespace poolrt
