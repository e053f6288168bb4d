// The one seam below poolrt: a table of driver functions with C types only.
//
//     DriverTable                         what both drivers answer
//       cuda_driver_table()               filled from libcuda.so.1 by dlopen: no CUDA header, nothing linked
//       host_driver_table()               N cards of fixed capacity made of host memory, first member of HostTable
//     HostTable                           what only the HOST driver has: memory with a ledger per card, and its set-up
//
// Every function returns a status, 0 for success, and throws nothing, so a table may cross from one separately compiled
// library to another. Statuses are numbered as CUresult, so a CUDA status passes through unchanged.
// Every function may be called from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace poolrt {

enum Status : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kLinkFailed = 220,       // a copy did not arrive; CUDA calls it NVLINK_UNCORRECTABLE
  kOperatingSystem = 304,  // the machine itself has no memory left
  kInvalidHandle = 400,    // no such stream or event, or one of another card
  kNotFound = 500,
  kNotSupported = 801,
};

inline constexpr int kMaxCards = 16;
inline constexpr int kHostMemory = -1;  // in place of a card: host memory, in no card's ledger

using Address = std::uint64_t;  // in the one address space that all cards share; 0 is none
using Pages = std::uint64_t;    // physical memory of one place, mapped or not; 0 is none
using Stream = void*;           // null: the default stream of the card it is used with
using Event = void*;

struct DriverTable {
  const char* name;  // "CUDA" or "HOST"
  int (*init)();
  int (*driver_version)(int* version);  // 13000 is 13.0
  int (*device_count)(int* count);
  int (*device_name)(int card, char* text, std::size_t capacity);
  int (*total_memory)(int card, std::size_t* nbytes);
  int (*memory_info)(int card, std::size_t* free_nbytes, std::size_t* total_nbytes);
  int (*can_access_peer)(int card, int peer, int* possible);
  const char* (*status_name)(int status);  // never null

  // Pages are made on a place, which is a card or kHostMemory, and mapped, always whole, into a reserved range. No card
  // may touch a mapping before access was set. Released pages live on until their last mapping is gone.
  //
  //     range:   | pages of card 0 | pages of card 1 | host pages |      one tensor, three places
  //
  // Every size and every address is a multiple of the place's granularity, else kInvalidValue. An alignment is 0 or a
  // power of two.
  int (*granularity)(int place, std::size_t* nbytes);
  int (*pages_create)(int place, std::size_t nbytes, Pages* pages);
  int (*pages_release)(Pages pages);
  int (*range_reserve)(std::size_t nbytes, std::size_t alignment, Address* range);
  int (*range_free)(Address range, std::size_t nbytes);  // nothing may be mapped in it
  int (*map)(Address at, std::size_t nbytes, Pages pages);
  int (*unmap)(Address at, std::size_t nbytes);  // one mapping; does not wait for the cards: drain them first
  // Reading and writing for these cards, of whole mappings without a gap; a card that cannot reach one of the places:
  // kInvalidDevice. The processor may read and write host pages from then on.
  int (*set_access)(Address at, std::size_t nbytes, const int* cards, int count);

  // Order. An event has passed when everything that was in the stream as it was recorded has been done, be it that a
  // copy in it failed.
  int (*event_record)(int card, Stream stream, Event* event);
  int (*event_passed)(Event event, int* passed);
  int (*event_destroy)(Event event);
  int (*drain)(int card);  // waits for all the work of the card
  // Has been done when it returns. Source and target each lie in one place: a copy of more is made piece by piece.
  // The HOST driver lets a copy between pages of two places go over their link, and takes other memory as being near.
  int (*copy)(Address target, Address source, std::size_t nbytes);
};

struct Ledger {
  std::size_t used_nbytes;
  std::size_t peak_nbytes;
  std::size_t capacity_nbytes;
  std::uint64_t allocation_count;  // granted since the process began; blocks of 0 bytes are not counted
  std::uint64_t refusal_count;     // refused for want of room
};

// What is to go wrong: from the at_call-th call on (1 is the next one), `count` calls in a row return `status` and do
// nothing (0: they do what was asked), and return `delay_us` microseconds late.
struct Fault {
  std::uint64_t at_call;
  int status;
  std::uint32_t delay_us;
  std::uint64_t count;
};

// How long a copy over a directed link takes: latency_s + nbytes / bytes_per_s. Without a model (0 bytes per second) it
// is done at once.
struct LinkModel {
  double bytes_per_s;
  double latency_s;
};

enum LinkFaultKind : int {
  kLinkSound = 0,
  kLinkLies = 1,  // copies of at least `at_least_nbytes` are reported done, but their byte `at_byte` is wrong
  kLinkDies = 2,  // `after_copies` copies or `after_nbytes` bytes are still carried; from then on every copy fails
};

inline constexpr std::size_t kMiddleByte = SIZE_MAX;
inline constexpr std::uint64_t kNoLimit = UINT64_MAX;

struct LinkFault {
  int kind;
  std::size_t at_byte;  // kMiddleByte: the one in the middle; beyond the copy's end: that copy is right
  std::size_t at_least_nbytes;
  std::uint64_t after_copies;
  std::uint64_t after_nbytes;
};

struct LinkState {
  std::uint64_t copies;  // carried since configure, modelled or not; failed ones are not counted
  std::uint64_t nbytes;
  int up;  // 0: it died
};

// One copy that the caller makes itself, between link_begin and link_end.
struct LinkPassage {
  std::int64_t arrival_ns;  // when the link has carried it, by the steady clock; 0: at once
  std::size_t wrong_byte;   // which of its bytes the caller is to falsify; kNoByte: none
};
inline constexpr std::size_t kNoByte = SIZE_MAX;

// One copy for a stream to make. `done` is called once, from any thread, when it was made or has failed, before anybody
// is told; the memory has to live until then.
struct StreamCopy {
  int source;  // places; a copy within one place crosses no link
  int target;
  void* to;
  const void* from;
  std::size_t nbytes;
  void (*done)(void* context);
  void* context;
};

struct CopyFailure {
  int source;
  int target;
  std::size_t nbytes;
};

// What was made and not given back yet.
struct PageState {
  std::uint64_t handle_count;  // pages that were not released, mapped or not
  std::uint64_t mapping_count;
  std::size_t mapped_nbytes;
  std::size_t reserved_nbytes;
  std::uint64_t event_count;
  std::uint64_t stream_count;  // without the cards' default streams
};

struct HostTable {
  std::uint32_t table_nbytes;  // sizeof(HostTable) where it was filled: a stale library is told apart by it
  std::uint32_t revision;      // kHostTableRevision where it was filled
  DriverTable driver;

  // A block belongs to one card (or kHostMemory), is aligned to 64 bytes, has one owner at first and returns its memory
  // with its last owner. A block of 0 bytes is a null pointer and costs nothing. The ledger rounds up to 512 bytes.
  int (*memory_allocate)(int card, std::size_t nbytes, void** pointer);
  int (*memory_retain)(void* pointer);
  int (*memory_free)(void* pointer);             // kNotFound if the pointer came from another allocator
  int (*memory_card)(void* pointer, int* card);  // kNotFound likewise

  // A card's ledger counts blocks and pages alike; that of kHostMemory counts pages only.
  int (*ledger)(int place, Ledger* ledger);
  int (*reset_peak)(int place);

  // Every pair of cards reaches each other afterwards, and host memory is without limit.
  int (*configure)(int cards, const std::size_t* capacities);
  int (*set_capacity)(int place, std::size_t nbytes);  // below what is used: nothing more is granted
  int (*set_peer)(int card, int peer, int possible);

  // Whether set_access let `card` (or the processor: kHostMemory) touch the mapping that holds `at`; 0 without one.
  int (*access)(Address at, int card, int* allowed);

  // A directed link joins two cards, or a card and the host. It carries one copy at a time, in the order in which they
  // become ready; the two directions between two places are two links, and all links work at the same time. configure
  // takes models, faults and failures that were not told away.
  //
  //     0 -> 1    | latency | copy a ........... | latency | copy b ........... |
  //     1 -> 0    | latency | copy c ... |                         time goes right
  //
  int (*link_set_model)(int source, int target, const LinkModel* model);
  int (*link_set_fault)(int source, int target, const LinkFault* fault);
  int (*link_state)(int source, int target, LinkState* state);
  // For a copy that the caller makes: link_begin takes its turn on the link, or fails with kLinkFailed where the link
  // is dead; link_end returns when the link has carried it.
  int (*link_begin)(int source, int target, std::size_t nbytes, LinkPassage* passage);
  int (*link_end)(const LinkPassage* passage);

  // A stream is a queue of copies, events and waits, each done after the one before it. What can be done at once is
  // done by the caller; a copy over a modelled link moves its bytes in pieces over its time, so who reads or writes
  // them too early gets wrong ones. The default stream (null) makes its caller wait instead of queueing, except that
  // an event recorded while it is held passes later.
  //
  //     stream s    copy x .... | event e |                      e passes when x was made
  //     stream t                          | wait e | copy y      y begins then
  //
  int (*stream_copy)(int card, Stream stream, const StreamCopy* copy);  // not the default stream: kInvalidValue
  int (*stream_wait)(int card, Stream stream, Event event, CopyFailure* failure);
  int (*stream_empty)(int card, Stream stream, int* empty);
  // These wait, and return kLinkFailed if a copy failed that is in the stream, or comes before the event. A stream's
  // failure is told once; so is one that was told by an event. `failure` is filled then.
  int (*stream_finish)(int card, Stream stream, CopyFailure* failure);
  int (*event_finish)(Event event, CopyFailure* failure);
  int (*card_finish)(int card, CopyFailure* failure);       // every stream of the card
  int (*event_time)(Event event, std::int64_t* passed_ns);  // by the steady clock; kNotFound: not passed yet

  // A wait that is missing goes unnoticed while everything is fast. A held stream makes it visible: what comes into it
  // after stream_hold is not done before stream_pass.
  //
  //     event a    stream_hold    event b    stream_pass
  //     ---+------------+------------+------------+---->       a has passed at once, b only here ^
  int (*stream_create)(int card, Stream* stream);
  int (*stream_destroy)(Stream stream);  // not while it is held: kInvalidValue
  int (*stream_hold)(Stream stream);
  int (*stream_pass)(Stream stream);
  int (*default_stream)(int card, Stream* stream);  // what null means, as a handle that can be held

  // Every call of DriverTable from granularity to copy is counted, and can be made to fail or to be late.
  int (*calls)(std::uint64_t* count);
  int (*set_fault)(const Fault* fault);
  int (*clear_fault)();
  int (*page_state)(PageState* state);
};

inline constexpr std::uint32_t kHostTableRevision = 3;

// Null, with the reason in `why`, when libcuda.so.1 cannot be opened or lacks a function.
const DriverTable* cuda_driver_table(const char** why);
const HostTable* host_driver_table();

}  // namespace poolrt
