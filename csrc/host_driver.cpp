// The HOST filling of the driver table: cards made of host memory, one ledger per card, a peer matrix.
//
//     host_machine    the cards, their ledgers, who reaches whom
//     host_blocks     ordinary memory of a card
//     host_pages      pages, ranges, mappings, access
//     host_streams    order: queues of copies, events and waits, which can be held
//     host_links      how long copies take, and what is wrong with them; host_carrier makes them in their time
//     host_faults     calls that fail or are late
#include <cstdio>

#include "driver.hpp"
#include "guarded.hpp"
#include "host_blocks.hpp"
#include "host_faults.hpp"
#include "host_links.hpp"
#include "host_machine.hpp"
#include "host_pages.hpp"
#include "host_streams.hpp"

namespace poolrt {
namespace {

using host_driver::counted;
using host_driver::HostMachine;
using host_driver::machine;

int init() { return kSuccess; }

int driver_version(int* version) {
  *version = static_cast<int>(kHostTableRevision);
  return kSuccess;
}

int device_count(int* count) {
  *count = machine().cards();
  return kSuccess;
}

int device_name(int card, char* text, std::size_t capacity) {
  if (!machine().has(card)) return kInvalidDevice;
  std::snprintf(text, capacity, "virtual card");
  return kSuccess;
}

int total_memory(int card, std::size_t* nbytes) {
  if (!machine().has(card)) return kInvalidDevice;
  *nbytes = machine().ledger(card).capacity();
  return kSuccess;
}

int memory_info(int card, std::size_t* free_nbytes, std::size_t* total_nbytes) {
  if (!machine().has(card)) return kInvalidDevice;
  *free_nbytes = machine().ledger(card).free_nbytes();
  *total_nbytes = machine().ledger(card).capacity();
  return kSuccess;
}

int can_access_peer(int card, int peer, int* possible) {
  if (!machine().has(card) || !machine().has(peer)) return kInvalidDevice;
  *possible = card != peer && machine().reaches(card, peer) ? 1 : 0;
  return kSuccess;
}

const char* status_name(int status) {
  switch (status) {
    case kSuccess:
      return "SUCCESS";
    case kInvalidValue:
      return "INVALID_VALUE";
    case kOutOfMemory:
      return "OUT_OF_MEMORY";
    case kNotInitialized:
      return "NOT_INITIALIZED";
    case kNoDevice:
      return "NO_DEVICE";
    case kInvalidDevice:
      return "INVALID_DEVICE";
    case kLinkFailed:
      return "NVLINK_UNCORRECTABLE";
    case kOperatingSystem:
      return "OPERATING_SYSTEM";
    case kInvalidHandle:
      return "INVALID_HANDLE";
    case kNotFound:
      return "NOT_FOUND";
    case kNotSupported:
      return "NOT_SUPPORTED";
    default:
      return "UNKNOWN";
  }
}

int ledger(int place, Ledger* ledger) {
  if (!HostMachine::has_ledger(place)) return kInvalidDevice;
  *ledger = machine().ledger(place).read();
  return kSuccess;
}

int reset_peak(int place) {
  if (!HostMachine::has_ledger(place)) return kInvalidDevice;
  machine().ledger(place).reset_peak();
  return kSuccess;
}

int configure(int cards, const std::size_t* capacities) {
  if (cards < 1 || cards > kMaxCards) return kInvalidValue;
  machine().configure(cards, capacities);
  host_driver::links().reset();
  host_driver::forget_failures();
  return kSuccess;
}

int set_capacity(int place, std::size_t nbytes) {
  if (!machine().is_place(place)) return kInvalidDevice;
  machine().set_capacity(place, nbytes);
  return kSuccess;
}

int set_peer(int card, int peer, int possible) {
  if (!machine().has(card) || !machine().has(peer) || card == peer) return kInvalidDevice;
  machine().set_peer(card, peer, possible != 0);
  return kSuccess;
}

int page_state(PageState* state) {
  *state = {};
  host_driver::count_pages(state);
  host_driver::count_streams(state);
  return kSuccess;
}

constexpr DriverTable kDriver = {
    "HOST",
    init,
    driver_version,
    device_count,
    device_name,
    total_memory,
    memory_info,
    can_access_peer,
    status_name,
    counted<host_driver::granularity>,
    counted<host_driver::pages_create>,
    counted<host_driver::pages_release>,
    counted<host_driver::range_reserve>,
    counted<host_driver::range_free>,
    counted<host_driver::map>,
    counted<host_driver::unmap>,
    counted<host_driver::set_access>,
    counted<host_driver::event_record>,
    counted<host_driver::event_passed>,
    counted<host_driver::event_destroy>,
    counted<host_driver::drain>,
    counted<host_driver::copy>,
};

constexpr HostTable kTable = {
    sizeof(HostTable),
    kHostTableRevision,
    kDriver,
    host_driver::block_allocate,
    host_driver::block_retain,
    host_driver::block_free,
    host_driver::block_card,
    ledger,
    reset_peak,
    configure,
    set_capacity,
    set_peer,
    host_driver::access,
    guarded<host_driver::link_set_model>,
    guarded<host_driver::link_set_fault>,
    guarded<host_driver::link_state>,
    guarded<host_driver::link_begin>,
    host_driver::link_end,
    guarded<host_driver::stream_copy>,
    guarded<host_driver::stream_wait>,
    guarded<host_driver::stream_empty>,
    guarded<host_driver::stream_finish>,
    guarded<host_driver::event_finish>,
    guarded<host_driver::card_finish>,
    guarded<host_driver::event_time>,
    guarded<host_driver::stream_create>,
    host_driver::stream_destroy,
    guarded<host_driver::stream_hold>,
    guarded<host_driver::stream_pass>,
    host_driver::default_stream,
    host_driver::count_calls,
    host_driver::set_fault,
    host_driver::clear_fault,
    page_state,
};

}  // namespace

const HostTable* host_driver_table() { return &kTable; }

}  // namespace poolrt
