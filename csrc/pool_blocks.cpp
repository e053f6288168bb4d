#include "pool_blocks.hpp"

#include <algorithm>
#include <tuple>

namespace poolrt {
namespace {

// `block` swallows the neighbour after it.
void join_after(Block* block) {
  Block* gone = block->after;
  block->nbytes += gone->nbytes;
  block->after = gone->after;
  if (gone->after != nullptr) gone->after->before = block;
  delete gone;
}

bool is_hole(const Block* block) { return block != nullptr && block->state == BlockState::kHole; }

}  // namespace

std::size_t Block::far_nbytes() const {
  if (segment->far_nbytes() == 0) return 0;
  std::size_t sum = 0;
  for (const Piece& part : extents()) sum += part.place == segment->home() ? 0 : part.nbytes;
  return sum;
}

Block* Holes::whole(Segment& segment) {
  const Block fresh(&segment, segment.address(), segment.nbytes());
  if (spare_ == nullptr) {
    segment.first = new Block(fresh);
  } else {
    *spare_ = fresh;
    segment.first = spare_.release();
  }
  return segment.first;
}

Block* Holes::take(int home, std::size_t nbytes, bool far_too) {
  Block* found = best_fit(home, false, nbytes);
  if (found == nullptr && far_too) found = best_fit(home, true, nbytes);
  if (found == nullptr) return nullptr;
  erase(found);
  cut(found, nbytes);
  return found;
}

bool Holes::give_back(Block* block) {
  block->state = BlockState::kHole;
  if (is_hole(block->after)) {
    erase(block->after);
    join_after(block);
  }
  if (is_hole(block->before)) {
    block = block->before;
    erase(block);
    join_after(block);
  }
  if (!block->whole_segment()) {
    insert(block);
    return false;
  }
  block->segment->first = nullptr;
  spare_.reset(block);
  return true;
}

void Holes::cut(Block* block, std::size_t nbytes) {
  if (block->nbytes == nbytes) return;
  Block* rest = new Block(block->segment, block->address + nbytes, block->nbytes - nbytes);
  rest->before = block;
  rest->after = block->after;
  if (rest->after != nullptr) rest->after->before = rest;
  block->after = rest;
  block->nbytes = nbytes;
  insert(rest);
}

std::size_t Holes::withdraw(const Segment& segment) {
  std::size_t sum = 0;
  for (Block* block = segment.first; block != nullptr; block = block->after) {
    if (!is_hole(block)) continue;
    erase(block);
    sum += block->nbytes;
  }
  return sum;
}

void Holes::restore(const Segment& segment) {
  for (Block* block = segment.first; block != nullptr; block = block->after) {
    if (is_hole(block)) insert(block);
  }
}

std::size_t Holes::largest() const {
  std::size_t largest = 0;
  for (const Key& key : holes_) largest = std::max(largest, key.nbytes);
  return largest;
}

bool Holes::Key::operator<(const Key& other) const {
  return std::tie(home, far, nbytes, address) < std::tie(other.home, other.far, other.nbytes, other.address);
}

Holes::Key Holes::key_of(Block* block) {
  return {block->segment->home(), block->segment->far_nbytes() != 0, block->nbytes, block->address, block};
}

Block* Holes::best_fit(int home, bool far, std::size_t nbytes) const {
  const auto found = holes_.lower_bound({home, far, nbytes, 0, nullptr});
  return found != holes_.end() && found->home == home && found->far == far ? found->block : nullptr;
}

void Holes::insert(Block* block) {
  holes_.insert(key_of(block));
  nbytes_ += block->nbytes;
}

void Holes::erase(Block* block) {
  holes_.erase(key_of(block));
  nbytes_ -= block->nbytes;
}

}  // namespace poolrt
