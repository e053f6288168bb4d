// What torch asks of a device type: the guard that switches the current card and its streams, and the hooks.
#include "vcard_device.hpp"

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdint>

#include "vcard_card.hpp"
#include "vcard_generator.hpp"
#include "vcard_hazards.hpp"
#include "vcard_memory.hpp"
#include "vcard_streams.hpp"

namespace poolrt::vcard {
namespace {

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return kVcard; }

  c10::Device exchangeDevice(c10::Device device) const override {
    check_ordinal(device.index());
    const c10::Device outer = getDevice();
    set_current_card(device.index());
    return outer;
  }
  c10::Device getDevice() const override { return device_of(current_card()); }
  // Unchecked: torch's autograd threads take their card before anyone says how many cards there are.
  void setDevice(c10::Device device) const override { set_current_card(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { set_current_card(device.index()); }

  // The most there can ever be: autograd makes its threads once, from this number.
  c10::DeviceIndex deviceCount() const noexcept override { return kMaxCards; }

  c10::Stream getStream(c10::Device device) const override {
    return vcard::current_stream(device.has_index() ? device.index() : current_card());
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device.has_index() ? device : getDevice());
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    return new_side_stream(device.has_index() ? device.index() : current_card());
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return exchange_stream(stream); }
  void* getStreamNativeHandle(const c10::Stream stream) const override { return handle_of(stream); }
  bool queryStream(const c10::Stream& stream) const override {
    if (!is_empty(stream)) return false;
    synchronizeStream(stream);  // raises if a copy in it failed
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    drain_stream(stream);
    note_finished(stream);
  }
  void synchronizeDevice(const c10::DeviceIndex card) const override {
    const int chosen = card < 0 ? current_card() : card;
    drain_card(chosen);
    note_finished_card(chosen);
  }
  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    if (hazards_are_watched()) note_allowed(memory, stream);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex card,
              const c10::EventFlag) const override {
    destroyEvent(*event, card);
    *event = nullptr;
    const int status = host().driver.event_record(stream.device_index(), handle_of(stream), event);
    TORCH_CHECK(status == kSuccess, "vcard: no event could be recorded: ", host().driver.status_name(status));
    note_recorded(*event, stream);
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    if (event == nullptr) return;
    note_forgotten(event);
    host().driver.event_destroy(event);
  }
  void block(void* event, const c10::Stream& stream) const override {
    note_waited(stream, event);
    wait_for_event(event, stream);
  }
  bool queryEvent(void* event) const override {
    int passed = 0;
    host().driver.event_passed(event, &passed);
    if (passed != 0) synchronizeEvent(event);  // raises if a copy before it failed
    return passed != 0;
  }
  void synchronizeEvent(void* event) const override {
    drain_event(event);
    note_finished(event);
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    std::int64_t from_ns = 0;
    std::int64_t to_ns = 0;
    const bool known = host().event_time(from, &from_ns) == kSuccess && host().event_time(to, &to_ns) == kSuccess;
    TORCH_CHECK(known, "vcard: both events must have passed before their distance is known");
    return static_cast<double>(to_ns - from_ns) / 1e6;
  }
};

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return card_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  void init() const override {}

  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(card_count()); }
  void setCurrentDevice(c10::DeviceIndex card) const override {
    check_ordinal(card);
    set_current_card(card);
  }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_card()); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex card) const override {
    const c10::DeviceIndex outer = getCurrentDevice();
    setCurrentDevice(card);
    return outer;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex card) const override {
    return card < 0 ? getCurrentDevice() : exchangeDevice(card);
  }

  // Every virtual card reads all host memory: pinned is what any memory is.
  at::Allocator* getPinnedMemoryAllocator() const override { return cpu_allocator(); }
  at::Device getDeviceFromPtr(void*) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "an address does not tell its virtual card: name the device");
  }

  const at::Generator& getDefaultGenerator(c10::DeviceIndex card) const override {
    return default_generator(or_current(card));
  }
  at::Generator getNewGenerator(c10::DeviceIndex card) const override { return new_generator(or_current(card)); }

  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t nbytes) const override {
    resize_storage(*storage.unsafeGetStorageImpl(), nbytes);
  }

 private:
  static int or_current(int card) {
    const int chosen = card < 0 ? current_card() : card;
    check_ordinal(chosen);
    return chosen;
  }
};

}  // namespace

void install_device() {
  static const auto* guard = new Guard;
  static const c10::impl::DeviceGuardImplRegistrar registrar(kVcard, guard);
  at::RegisterPrivateUse1HooksInterface(new Hooks);
}

}  // namespace poolrt::vcard
