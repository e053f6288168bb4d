#include "pool_tiers.hpp"

#include <algorithm>

namespace poolrt {

int Tiers::open(const CountedDriver& driver, const PoolOptions& options) {
  if (options.cards.empty() || options.cards.size() > kMaxCards) return kInvalidValue;
  for (const CardShare& card : options.cards) {
    use_.push_back({static_cast<int>(ordinals_.size()), card.limit_nbytes, 0, 0});
    ordinals_.push_back(card.ordinal);
  }
  use_.push_back({kHostMemory, options.host_limit_nbytes, 0, 0});
  if (const int status = ask_granularity(driver, options.host_limit_nbytes)) return status;
  if (const int status = ask_reach(driver)) return status;
  return put_in_order(options.peers);
}

int Tiers::ask_granularity(const CountedDriver& driver, std::size_t host_limit_nbytes) {
  for (const int ordinal : ordinals_) {
    std::size_t nbytes = 0;
    if (const int status = driver->granularity(ordinal, &nbytes)) return status;
    granule_nbytes_ = std::max(granule_nbytes_, nbytes);
  }
  std::size_t host_nbytes = 0;
  host_status_ = driver->granularity(kHostMemory, &host_nbytes);
  if (host_status_ == kSuccess) granule_nbytes_ = std::max(granule_nbytes_, host_nbytes);
  return host_limit_nbytes == 0 ? kSuccess : host_status_;
}

int Tiers::ask_reach(const CountedDriver& driver) {
  reach_.assign(ordinals_.size(), std::vector<bool>(ordinals_.size(), true));
  for (std::size_t card = 0; card < ordinals_.size(); ++card) {
    for (std::size_t peer = 0; peer < ordinals_.size(); ++peer) {
      if (ordinals_[card] == ordinals_[peer]) continue;
      int possible = 0;
      if (const int status = driver->can_access_peer(ordinals_[card], ordinals_[peer], &possible)) return status;
      reach_[card][peer] = possible != 0;
    }
  }
  return kSuccess;
}

int Tiers::put_in_order(const std::vector<std::vector<int>>& peers) {
  if (!peers.empty() && peers.size() != ordinals_.size()) return kInvalidValue;
  for (int home = 0; home < cards(); ++home) {
    std::vector<int> order{home};
    const auto add = [&](int peer) {
      if (reaches(home, peer) && std::find(order.begin(), order.end(), peer) == order.end()) order.push_back(peer);
    };
    if (!peers.empty()) {
      for (const int peer : peers[home]) {
        if (!has_card(peer)) return kInvalidValue;
        add(peer);
      }
    } else {
      for (int peer = 0; peer < cards(); ++peer) add(peer);
    }
    order.push_back(kHostMemory);
    orders_.push_back(std::move(order));
  }
  return kSuccess;
}

int Tiers::card_of_ordinal(int ordinal) const {
  const auto found = std::find(ordinals_.begin(), ordinals_.end(), ordinal);
  return found == ordinals_.end() ? kHostMemory : static_cast<int>(found - ordinals_.begin());
}

std::size_t Tiers::room(int place) const {
  const TierUse& tier = at(place);
  return tier.limit_nbytes - std::min(tier.limit_nbytes, tier.mapped_nbytes);
}

std::vector<Piece> Tiers::rooms_from(int home) const {
  std::vector<Piece> rooms;
  for (const int place : orders_[home]) rooms.push_back({place, room(place)});
  return rooms;
}

std::vector<int> Tiers::with_access(const std::vector<Piece>& extents) const {
  std::vector<int> ordinals;
  for (int card = 0; card < cards(); ++card) {
    const bool all = std::all_of(extents.begin(), extents.end(),
                                 [this, card](const Piece& extent) { return reaches(card, extent.place); });
    const bool known = std::find(ordinals.begin(), ordinals.end(), ordinals_[card]) != ordinals.end();
    if (all && !known) ordinals.push_back(ordinals_[card]);
  }
  return ordinals;
}

void Tiers::charge(int place, std::size_t nbytes) {
  TierUse& tier = at(place);
  tier.mapped_nbytes += nbytes;
  tier.peak_nbytes = std::max(tier.peak_nbytes, tier.mapped_nbytes);
}

int Tiers::set_limit(int place, std::size_t nbytes) {
  if (place != kHostMemory && !has_card(place)) return kInvalidDevice;
  if (place == kHostMemory && nbytes != 0 && host_status_ != kSuccess) return kNotSupported;
  at(place).limit_nbytes = nbytes;
  return kSuccess;
}

std::size_t Tiers::mapped() const {
  std::size_t sum = 0;
  for (const TierUse& tier : use_) sum += tier.mapped_nbytes;
  return sum;
}

}  // namespace poolrt
