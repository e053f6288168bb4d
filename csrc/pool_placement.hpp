// Where the bytes of a segment go: a pure decision, made extent by extent because the driver may say no.
//
//     wanted 100 MiB for home 0, chunks of 32 MiB; card 0 has room for 64, card 1 for 48, the host for 64
//
//     | card 0: 32 | card 0: 32 | card 1: 32 | card 1: 4 |
//
// The order is home, peers that home reaches (nearest first), host. A card that refuses although its limit leaves room
// is used by somebody else too: smaller bites are tried, down to one granule, and then the next place.
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

#include "driver.hpp"

namespace poolrt {

struct Piece {
  int place;  // a card's index in its pool, or kHostMemory
  std::size_t nbytes;
};

inline bool operator==(const Piece& a, const Piece& b) { return a.place == b.place && a.nbytes == b.nbytes; }

class Placement {
 public:
  // `rooms`: the places in the order they are to be used, with the bytes free in each; `chunk_nbytes`: the largest
  // extent. Everything is cut to whole granules.
  Placement(std::vector<Piece> rooms, std::size_t chunk_nbytes, std::size_t granule_nbytes);

  // Where the next extent of a segment should be that still lacks `nbytes`; nothing where there is no room at all.
  std::optional<Piece> next(std::size_t nbytes) const;

  bool enough_for(std::size_t nbytes) const;
  void granted(const Piece& extent);

  // True if a smaller bite at the same place is worth a try; false if the place is given up.
  bool refused(const Piece& extent);

 private:
  struct Place {
    int place;
    std::size_t free_nbytes;
    std::size_t bite_nbytes;
  };
  Place& at(int place);
  std::size_t whole(std::size_t nbytes) const { return nbytes / granule_nbytes_ * granule_nbytes_; }

  std::vector<Place> places_;
  std::size_t granule_nbytes_;
};

// All extents at once, if no driver refuses; empty where there is not enough room.
std::vector<Piece> place_all(Placement placement, std::size_t nbytes);

}  // namespace poolrt
