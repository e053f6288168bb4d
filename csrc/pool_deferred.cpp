#include "pool_deferred.hpp"

#include <algorithm>

namespace poolrt {

int Deferred::record(Block& block, const std::vector<StreamUse>& uses) {
  const std::size_t before = block.pending.size();
  for (const StreamUse& use : uses) {
    Event event = nullptr;
    const int status = (*driver_)->event_record(tiers_->ordinal(use.card), use.stream, &event);
    if (status != kSuccess) {
      for (std::size_t i = before; i < block.pending.size(); ++i) spent_.push_back(block.pending[i].event);
      block.pending.resize(before);
      return status;
    }
    block.pending.push_back({use.card, use.stream, event, ++number_});
  }
  return kSuccess;
}

void Deferred::insert(Block* block) {
  block->state = BlockState::kDeferred;
  blocks_.push_back(block);
  nbytes_ += block->nbytes;
}

void Deferred::remove(std::list<Block*>::iterator position) {
  nbytes_ -= (*position)->nbytes;
  blocks_.erase(position);
}

bool Deferred::has_passed(Block& block) {
  while (!block.pending.empty()) {
    int passed = 0;
    if ((*driver_)->event_passed(block.pending.back().event, &passed) != kSuccess || passed == 0) return false;
    spent_.push_back(block.pending.back().event);
    block.pending.pop_back();
  }
  return true;
}

std::vector<Block*> Deferred::take_passed(bool oldest_only) {
  std::vector<Block*> found;
  for (auto it = blocks_.begin(); it != blocks_.end();) {
    const auto here = it++;
    if (has_passed(**here)) {
      found.push_back(*here);
      remove(here);
    } else if (oldest_only) {
      break;
    }
  }
  return found;
}

Block* Deferred::take_for(int home, Stream stream, std::size_t nbytes) {
  for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
    Block& block = **it;
    if (block.segment->home() != home || block.nbytes < nbytes || block.nbytes > nbytes + nbytes / 8) continue;
    const auto same = [&](const PendingUse& use) { return use.card == home && use.stream == stream; };
    if (!std::all_of(block.pending.begin(), block.pending.end(), same)) continue;
    for (const PendingUse& use : block.pending) spent_.push_back(use.event);
    block.pending.clear();
    remove(it);
    return &block;
  }
  return nullptr;
}

int Deferred::card_to_wait_for(int home) const {
  int card = kHostMemory;
  for (const Block* block : blocks_) {
    for (const PendingUse& use : block->pending) {
      if (use.card == home) return home;
      if (card == kHostMemory) card = use.card;
    }
  }
  return card;
}

void Deferred::passed(int card, std::uint64_t number) {
  for (Block* block : blocks_) {
    auto& pending = block->pending;
    const auto done = [&](const PendingUse& use) {
      if (use.card != card || use.number > number) return false;
      spent_.push_back(use.event);
      return true;
    };
    pending.erase(std::remove_if(pending.begin(), pending.end(), done), pending.end());
  }
}

int Deferred::destroy_spent() {
  while (!spent_.empty()) {
    if (const int status = (*driver_)->event_destroy(spent_.back())) return status;
    spent_.pop_back();
  }
  return kSuccess;
}

}  // namespace poolrt
