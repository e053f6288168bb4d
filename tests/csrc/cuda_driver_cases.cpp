// The CUDA driver, on the fake libcuda and on a real one alike.
#include <algorithm>
#include <cstring>
#include <thread>
#include <vector>

#include "cuda_cases.hpp"

namespace {

using poolrt::Address;
using poolrt::Event;
using poolrt::kHostMemory;
using poolrt::kInvalidDevice;
using poolrt::Pages;

int count_cards() {
  int count = 0;
  EXPECT_OK(driver().device_count(&count));
  return count;
}

// The cards that reach every place; card 0 is one of them.
std::vector<int> reaching(const std::vector<int>& places) {
  std::vector<int> cards;
  for (int card = 0; card < count_cards(); ++card) {
    const bool all = std::all_of(places.begin(), places.end(), [&](int place) {
      int possible = 1;
      if (place != kHostMemory && place != card) EXPECT_OK(driver().can_access_peer(card, place, &possible));
      return possible == 1;
    });
    if (all) cards.push_back(card);
  }
  return cards;
}

// Card 0, card 1 if card 0 reaches it, and the host if this driver has host pages.
std::vector<int> places_in_reach() {
  std::vector<int> places = {0};
  int possible = 0;
  if (count_cards() > 1) EXPECT_OK(driver().can_access_peer(0, 1, &possible));
  if (possible == 1) places.push_back(1);
  std::size_t nbytes = 0;
  if (driver().granularity(kHostMemory, &nbytes) == poolrt::kSuccess) places.push_back(kHostMemory);
  return places;
}

std::vector<unsigned char> pattern(std::size_t nbytes, unsigned seed) {
  std::vector<unsigned char> bytes(nbytes);
  for (std::size_t i = 0; i < nbytes; ++i) bytes[i] = static_cast<unsigned char>((i * 2654435761u + seed) >> 16);
  return bytes;
}

Address address(const std::vector<unsigned char>& bytes) { return reinterpret_cast<Address>(bytes.data()); }

//     range:   | card 0 | card 1, if reached | host, if there |
CASE(one_range_is_made_of_every_place_in_reach) {
  const std::vector<int> places = places_in_reach();
  std::size_t piece = 0;
  for (const int place : places) piece = std::max(piece, granularity(place));
  const Address range = reserve(piece * places.size());
  EXPECT(range % granularity(0) == 0);
  for (std::size_t i = 0; i < places.size(); ++i) {
    const Pages pages = create(places[i], piece);
    EXPECT_OK(driver().map(range + i * piece, piece, pages));
    EXPECT_OK(driver().pages_release(pages));
  }
  const std::vector<int> cards = reaching(places);
  EXPECT_OK(driver().set_access(range, piece * places.size(), cards.data(), static_cast<int>(cards.size())));
  for (std::size_t i = 0; i < places.size(); ++i) {
    const std::vector<unsigned char> sent = pattern(piece, static_cast<unsigned>(i));
    const Address at = range + i * piece;
    EXPECT_OK(driver().copy(at, address(sent), piece));
    std::vector<unsigned char> returned(piece);
    EXPECT_OK(driver().copy(address(returned), at, piece));
    EXPECT(returned == sent);
    if (places[i] == kHostMemory) EXPECT(std::memcmp(reinterpret_cast<const void*>(at), sent.data(), piece) == 0);
    EXPECT_OK(driver().copy(range, at, piece));  // from place to place, once onto itself
    EXPECT_OK(driver().copy(address(returned), range + 3, piece - 3));
    EXPECT(std::memcmp(returned.data(), sent.data() + 3, piece - 3) == 0);
  }
  for (const int card : cards) EXPECT_OK(driver().drain(card));
  for (std::size_t i = 0; i < places.size(); ++i) EXPECT_OK(driver().unmap(range + i * piece, piece));
  EXPECT_OK(driver().range_free(range, piece * places.size()));
}

CASE(pages_keep_their_bytes_when_they_are_mapped_anew) {
  const std::size_t nbytes = granularity(0);
  const Pages pages = create(0, nbytes);
  const std::vector<unsigned char> sent = pattern(nbytes, 5);
  const int card = 0;
  for (int round = 0; round < 2; ++round) {
    const Address range = reserve(nbytes);
    EXPECT_OK(driver().map(range, nbytes, pages));
    EXPECT_OK(driver().set_access(range, nbytes, &card, 1));
    if (round == 0) EXPECT_OK(driver().copy(range, address(sent), nbytes));
    std::vector<unsigned char> returned(nbytes);
    EXPECT_OK(driver().copy(address(returned), range, nbytes));
    EXPECT(returned == sent);
    EXPECT_OK(driver().unmap(range, nbytes));
    EXPECT_OK(driver().range_free(range, nbytes));
  }
  EXPECT_OK(driver().pages_release(pages));
}

CASE(an_event_has_passed_after_its_card_was_drained) {
  Event event = nullptr;
  EXPECT_OK(driver().event_record(0, nullptr, &event));
  EXPECT_OK(driver().drain(0));
  int passed = 0;
  EXPECT_OK(driver().event_passed(event, &passed));
  EXPECT(passed == 1);
  EXPECT_OK(driver().event_destroy(event));
}

// A new thread has no context; the driver brings one for each call and takes it away again.
CASE(a_thread_is_left_without_a_context_as_it_came) {
  EXPECT(count_cards() >= 1);
  std::thread([] {
    EXPECT(current_context() == nullptr);
    const std::size_t nbytes = granularity(0);
    const Pages pages = create(0, nbytes);
    const Address range = reserve(nbytes);
    Event event = nullptr;
    int passed = 0;
    EXPECT_OK(driver().map(range, nbytes, pages));
    EXPECT_OK(driver().event_record(0, nullptr, &event));
    EXPECT_OK(driver().event_passed(event, &passed));
    EXPECT_OK(driver().event_destroy(event));
    EXPECT_OK(driver().drain(0));
    EXPECT_OK(driver().unmap(range, nbytes));
    EXPECT_OK(driver().pages_release(pages));
    EXPECT_OK(driver().range_free(range, nbytes));
    EXPECT(current_context() == nullptr);
  }).join();
}

CASE(a_card_that_is_not_there_is_refused) {
  const int beyond = count_cards();
  const std::size_t nbytes = granularity(0);
  Pages pages = 77;
  Event event = nullptr;
  std::size_t answer = 0;
  EXPECT(driver().granularity(beyond, &answer) == kInvalidDevice);
  EXPECT(driver().pages_create(beyond, nbytes, &pages) == kInvalidDevice && pages == 77);
  EXPECT(driver().pages_create(-2, nbytes, &pages) == kInvalidDevice && pages == 77);
  EXPECT(driver().event_record(beyond, nullptr, &event) == kInvalidDevice && event == nullptr);
  EXPECT(driver().drain(beyond) == kInvalidDevice && driver().drain(-1) == kInvalidDevice);
  const Address range = reserve(nbytes);
  const Pages made = create(0, nbytes);
  EXPECT_OK(driver().map(range, nbytes, made));
  EXPECT(driver().map(range, nbytes, made) != poolrt::kSuccess);
  for (const int card : {beyond, kHostMemory}) EXPECT(driver().set_access(range, nbytes, &card, 1) == kInvalidDevice);
  EXPECT_OK(driver().unmap(range, nbytes));
  EXPECT_OK(driver().pages_release(made));
  EXPECT_OK(driver().range_free(range, nbytes));
}

}  // namespace
