// Where the bytes of a segment go, decided without a driver.
#include "cases.hpp"
#include "pool_placement.hpp"

namespace {

using poolrt::kHostMemory;
using poolrt::Piece;
using poolrt::Placement;
using Pieces = std::vector<Piece>;

constexpr std::size_t kMiB = 1 << 20;
constexpr std::size_t kPage = 2 * kMiB;

Pieces place(std::size_t nbytes, const Pieces& rooms, std::size_t chunk_nbytes) {
  return place_all(Placement(rooms, chunk_nbytes, kPage), nbytes);
}

// wanted 100 MiB for home 0, chunks of 32 MiB; card 0 has room for 64, card 1 for 48, the host for 64
//
// | card 0: 32 | card 0: 32 | card 1: 32 | card 1: 4 |
CASE(home_first_then_peers_then_the_host) {
  const Pieces rooms = {{0, 64 * kMiB}, {1, 48 * kMiB}, {kHostMemory, 64 * kMiB}};
  EXPECT(place(100 * kMiB, rooms, 32 * kMiB) ==
         (Pieces{{0, 32 * kMiB}, {0, 32 * kMiB}, {1, 32 * kMiB}, {1, 4 * kMiB}}));
  EXPECT(place(120 * kMiB, rooms, 64 * kMiB) == (Pieces{{0, 64 * kMiB}, {1, 48 * kMiB}, {kHostMemory, 8 * kMiB}}));
  EXPECT(place(64 * kMiB, rooms, 64 * kMiB) == (Pieces{{0, 64 * kMiB}}));
}

CASE(the_order_given_is_the_order_used) {
  EXPECT(place(6 * kMiB, {{2, 2 * kMiB}, {0, 2 * kMiB}, {1, 2 * kMiB}}, 64 * kMiB) ==
         (Pieces{{2, 2 * kMiB}, {0, 2 * kMiB}, {1, 2 * kMiB}}));
}

CASE(not_enough_room_is_nothing_at_all) {
  EXPECT(place(8 * kMiB, {{0, 4 * kMiB}, {1, 2 * kMiB}}, 64 * kMiB).empty());
  EXPECT(place(8 * kMiB, {}, 64 * kMiB).empty());
  EXPECT(!Placement({{0, 4 * kMiB}}, 64 * kMiB, kPage).enough_for(6 * kMiB));
  EXPECT(Placement({{0, 4 * kMiB}, {1, 2 * kMiB}}, 64 * kMiB, kPage).enough_for(6 * kMiB));
}

CASE(room_counts_in_whole_granules) {
  EXPECT(place(4 * kMiB, {{0, 3 * kMiB}, {1, 3 * kMiB}}, 64 * kMiB) == (Pieces{{0, 2 * kMiB}, {1, 2 * kMiB}}));
  EXPECT(place(4 * kMiB, {{0, 3 * kMiB}, {1, kMiB}}, 64 * kMiB).empty());
  EXPECT(place(4 * kMiB, {{0, 8 * kMiB}}, 1) == (Pieces{{0, 2 * kMiB}, {0, 2 * kMiB}}));
}

//     card 0 says no to 16, to 8, to 4, grants 2, and says no to 2: card 1 takes the rest in whole bites
CASE(a_card_that_refuses_is_asked_for_less_and_then_left_alone) {
  Placement placement({{0, 64 * kMiB}, {1, 64 * kMiB}}, 64 * kMiB, kPage);
  for (const std::size_t bite : {16 * kMiB, 8 * kMiB, 4 * kMiB}) {
    EXPECT((*placement.next(16 * kMiB) == Piece{0, bite}));
    EXPECT(placement.refused({0, bite}));
  }
  EXPECT((*placement.next(16 * kMiB) == Piece{0, kPage}));
  placement.granted({0, kPage});
  EXPECT((*placement.next(14 * kMiB) == Piece{0, kPage}));
  EXPECT(!placement.refused({0, kPage}));
  EXPECT((*placement.next(14 * kMiB) == Piece{1, 14 * kMiB}));
  EXPECT(placement.enough_for(64 * kMiB) && !placement.enough_for(66 * kMiB));
}

CASE(bites_stay_whole_granules) {
  Placement placement({{0, 64 * kMiB}}, 64 * kMiB, kPage);
  EXPECT(placement.refused({0, 6 * kMiB}));
  EXPECT((*placement.next(6 * kMiB) == Piece{0, 2 * kMiB}));
}

CASE(nothing_is_left_when_everybody_refused) {
  Placement placement({{0, 2 * kMiB}, {kHostMemory, 2 * kMiB}}, 64 * kMiB, kPage);
  EXPECT(!placement.refused({0, kPage}));
  EXPECT(!placement.refused({kHostMemory, kPage}));
  EXPECT(!placement.next(kPage).has_value());
}

}  // namespace
