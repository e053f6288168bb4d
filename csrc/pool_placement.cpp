#include "pool_placement.hpp"

#include <algorithm>

namespace poolrt {

Placement::Placement(std::vector<Piece> rooms, std::size_t chunk_nbytes, std::size_t granule_nbytes)
    : granule_nbytes_(granule_nbytes) {
  const std::size_t bite = std::max(granule_nbytes, whole(chunk_nbytes));
  for (const Piece& room : rooms) places_.push_back({room.place, whole(room.nbytes), bite});
}

std::optional<Piece> Placement::next(std::size_t nbytes) const {
  for (const Place& place : places_) {
    const std::size_t bite = std::min({nbytes, place.free_nbytes, place.bite_nbytes});
    if (bite != 0) return Piece{place.place, bite};
  }
  return std::nullopt;
}

bool Placement::enough_for(std::size_t nbytes) const {
  for (const Place& place : places_) {
    if (place.free_nbytes >= nbytes) return true;
    nbytes -= place.free_nbytes;
  }
  return nbytes == 0;
}

void Placement::granted(const Piece& extent) { at(extent.place).free_nbytes -= extent.nbytes; }

bool Placement::refused(const Piece& extent) {
  Place& place = at(extent.place);
  place.bite_nbytes = whole(extent.nbytes / 2);
  if (place.bite_nbytes == 0) place.free_nbytes = 0;
  return place.bite_nbytes != 0;
}

Placement::Place& Placement::at(int place) {
  return *std::find_if(places_.begin(), places_.end(), [place](const Place& one) { return one.place == place; });
}

std::vector<Piece> place_all(Placement placement, std::size_t nbytes) {
  std::vector<Piece> extents;
  if (!placement.enough_for(nbytes)) return extents;
  while (nbytes != 0) {
    const Piece extent = *placement.next(nbytes);
    placement.granted(extent);
    nbytes -= extent.nbytes;
    extents.push_back(extent);
  }
  return extents;
}

}  // namespace poolrt
