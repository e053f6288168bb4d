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

// Work for which any context will do: the one that is current, else one that is kept already, else that of card 0.
int any_kept_context(Context* context);
bool has_current_context();

template <typename Work>
int in_some_context(Work work) {
  if (has_current_context()) return work();
  Context context = nullptr;
  if (const int status = any_kept_context(&context)) return status;
  return in_context(context, work);
}

}  // namespace poolrt::cuda_driver
