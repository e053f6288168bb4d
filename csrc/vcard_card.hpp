// Which cards there are, and the two cards every thread knows: the one torch calls current, and the one whose memory
// the CPU allocator hands out while a kernel of that card runs.
#pragma once

#include <c10/core/Device.h>

#include <atomic>

#include "driver.hpp"
#include "pool_table.hpp"

namespace poolrt::vcard {

inline constexpr c10::DeviceType kVcard = c10::DeviceType::PrivateUse1;

// Called once, before anything else here.
void attach(const HostTable* host, const PoolTable* pools);
const HostTable& host();
const PoolTable& pools();

// Whether memory may be a pool's, and a request may be for one. Free of charge while there is none.
inline bool pools_in_use() { return pools().activity->load(std::memory_order_relaxed) != 0; }

int card_count();
int current_card();
void set_current_card(int card);
int birth_card();  // kHostMemory outside of a kernel

// Raises torch's error for a card that is not there.
void check_ordinal(int card);

inline c10::Device device_of(int card) { return {kVcard, static_cast<c10::DeviceIndex>(card)}; }

// While it lives, what the CPU allocator hands out on this thread is charged to `card`.
class BornOn {
 public:
  explicit BornOn(int card);
  BornOn(const BornOn&) = delete;
  BornOn& operator=(const BornOn&) = delete;
  ~BornOn();

 private:
  int outer_;
};

}  // namespace poolrt::vcard
