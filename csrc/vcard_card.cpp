#include "vcard_card.hpp"

#include <c10/util/Exception.h>

namespace poolrt::vcard {
namespace {

const HostTable* attached_host = nullptr;
const PoolTable* attached_pools = nullptr;
thread_local int this_threads_card = 0;
thread_local int this_threads_birth_card = kHostMemory;

}  // namespace

void attach(const HostTable* host, const PoolTable* pools) {
  attached_host = host;
  attached_pools = pools;
}

const HostTable& host() { return *attached_host; }
const PoolTable& pools() { return *attached_pools; }

int card_count() {
  int count = 0;
  host().driver.device_count(&count);
  return count;
}

int current_card() { return this_threads_card; }
void set_current_card(int card) { this_threads_card = card; }
int birth_card() { return this_threads_birth_card; }

void check_ordinal(int card) {
  const int count = card_count();
  TORCH_CHECK(card >= 0 && card < count, "vcard: invalid device ordinal ", card, "; there are ", count,
              " virtual cards, numbered from 0");
}

BornOn::BornOn(int card) : outer_(this_threads_birth_card) { this_threads_birth_card = card; }
BornOn::~BornOn() { this_threads_birth_card = outer_; }

}  // namespace poolrt::vcard
