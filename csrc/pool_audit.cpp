// Counts a pool anew from its blocks up, and says where that differs from what it keeps.
#include "pool.hpp"

namespace poolrt {
namespace {

std::string differs(const char* what, std::size_t counted, std::size_t kept) {
  return counted == kept
             ? ""
             : std::string(what) + ": counted " + std::to_string(counted) + ", kept " + std::to_string(kept);
}

}  // namespace

std::string Pool::audit() const {
  const Lock lock(mutex_);
  std::size_t live = 0, deferred = 0, holes = 0, cached = 0, spilled = 0, requested = 0, blocks = 0;
  for (const auto& [address, segment] : segments_) {
    if (segment->first == nullptr) cached += segment->nbytes();
    Address expected = address;
    const Block* before = nullptr;
    for (const Block* block = segment->first; block != nullptr; before = block, block = block->after) {
      if (block->address != expected || block->before != before || block->segment != segment.get())
        return "blocks of a segment are not in a row";
      expected += block->nbytes;
      const bool hole = block->state == BlockState::kHole;
      if (hole && before != nullptr && before->state == BlockState::kHole) return "two holes in a row";
      if (hole && block->whole_segment()) return "an empty segment is not cached";
      if (hole && !segment->moving) holes += block->nbytes;  // else it is among what is leaving
      if (block->state == BlockState::kDeferred) deferred += block->nbytes;
      if (block->state != BlockState::kLive) continue;
      const auto known = live_.find(block->address);
      if (known == live_.end() || known->second != block) return "a live block cannot be found";
      live += block->nbytes;
      spilled += block->far_nbytes();
      requested += block->requested_nbytes;
      ++blocks;
    }
    if (segment->first != nullptr && expected != address + segment->nbytes()) return "blocks do not fill a segment";
  }
  const std::size_t sum = live + deferred + holes + cached + leaving_nbytes_ + condemned_nbytes();
  for (const std::string& difference :
       {differs("live", live, live_nbytes_), differs("deferred", deferred, deferred_.nbytes()),
        differs("holes", holes, holes_.nbytes()), differs("cached", cached, cache_.nbytes()),
        differs("spilled", spilled, spilled_nbytes_), differs("requested", requested, requested_nbytes_),
        differs("live blocks", blocks, live_.size()), differs("mapped", sum, tiers_.mapped())}) {
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace poolrt
