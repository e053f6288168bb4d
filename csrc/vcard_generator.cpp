#include "vcard_generator.hpp"

#include <ATen/CPUGeneratorImpl.h>

#include <utility>
#include <vector>

#include "vcard_card.hpp"

namespace poolrt::vcard {
namespace {

class CardGenerator final : public c10::GeneratorImpl {
 public:
  CardGenerator(int card, at::Generator cpu)
      : GeneratorImpl(device_of(card), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), cpu_(std::move(cpu)) {}

  const at::Generator& cpu() const { return cpu_; }

  void set_current_seed(uint64_t seed) override { cpu_.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu_.set_offset(offset); }
  uint64_t get_offset() const override { return cpu_.get_offset(); }
  uint64_t current_seed() const override { return cpu_.current_seed(); }
  uint64_t seed() override { return cpu_.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu_.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu_.unsafeGetGeneratorImpl()->get_state(); }

 private:
  CardGenerator* clone_impl() const override { return new CardGenerator(device().index(), cpu_.clone()); }

  at::Generator cpu_;
};

}  // namespace

const at::Generator& default_generator(int card) {
  // All of them from the start: a reference handed out stays good when the number of cards changes.
  static auto* generators = [] {
    auto* all = new std::vector<at::Generator>;
    for (int i = 0; i < kMaxCards; ++i) all->push_back(new_generator(i));
    return all;
  }();
  return generators->at(card);
}

at::Generator new_generator(int card) {
  return at::make_generator<CardGenerator>(card, at::detail::createCPUGenerator());
}

const at::Generator& cpu_generator(const at::Generator& generator) { return generator.get<CardGenerator>()->cpu(); }

}  // namespace poolrt::vcard
