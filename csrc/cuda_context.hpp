// Contexts: most functions of libcuda work in the context that is current in the calling thread.
#pragma once

#include "cuda_abi.hpp"
#include "driver.hpp"

namespace poolrt::cuda_driver {

// Makes a context current for one scope, and the one before it afterwards.
class CurrentContext {
 public:
  explicit CurrentContext(Context context);
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  ~CurrentContext();

  int status() const { return status_; }

 private:
  int status_;
};

template <typename Work>
int in_context(Context context, Work work) {
  const CurrentContext current(context);
  return current.status() != kSuccess ? current.status() : work();
}

// A card's primary context, which torch uses too. It is kept for the life of the process once it was asked for: pages,
// events and torch's own work need it time and again, and to make one takes hundreds of milliseconds.
int kept_context(int card, Context* context);

// Work in a card's kept context.
template <typename Work>
int in_context_of(int card, Work work) {
  Context context = nullptr;
  if (const int status = kept_context(card, &context)) return status;
  return in_context(context, work);
}

bool has_current_context();
Context any_kept_context();  // null without one

// Work in the context that is current, else in one that is kept, else in that of card 0.
template <typename Work>
int in_some_context(Work work) {
  if (has_current_context()) return work();
  const Context kept = any_kept_context();
  return kept != nullptr ? in_context(kept, work) : in_context_of(0, work);
}

// Work for which, by the reference, no context is needed. One is brought along if there is one, but none is made: it
// would take memory of a card that may not be in use.
template <typename Work>
int in_context_if_any(Work work) {
  return has_current_context() || any_kept_context() == nullptr ? work() : in_some_context(work);
}

}  // namespace poolrt::cuda_driver
