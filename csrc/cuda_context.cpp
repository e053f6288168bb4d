#include "cuda_context.hpp"

#include <array>
#include <mutex>

#include "cuda_library.hpp"

namespace poolrt::cuda_driver {
namespace {

struct KeptContexts {
  std::mutex mutex;
  std::array<Context, kMaxCards> contexts{};
};

KeptContexts& kept() {
  static auto* instance = new KeptContexts;
  return *instance;
}

}  // namespace

CurrentContext::CurrentContext(Context context) : status_(cuda().context_push(context)) {}

CurrentContext::~CurrentContext() {
  Context popped = nullptr;
  if (status_ == kSuccess) cuda().context_pop(&popped);
}

int kept_context(int card, Context* context) {
  if (card < 0 || card >= kMaxCards) return kInvalidDevice;
  const std::lock_guard<std::mutex> lock(kept().mutex);
  Context& known = kept().contexts[card];
  if (known == nullptr) {
    int device = 0;
    if (const int status = cuda().device(&device, card)) return status;
    Context retained = nullptr;
    if (const int status = cuda().context_retain(&retained, device)) return status;
    known = retained;
  }
  *context = known;
  return kSuccess;
}

Context any_kept_context() {
  const std::lock_guard<std::mutex> lock(kept().mutex);
  for (const Context known : kept().contexts) {
    if (known != nullptr) return known;
  }
  return nullptr;
}

bool has_current_context() {
  Context context = nullptr;
  return call(cuda().context_current, &context) == kSuccess && context != nullptr;
}

}  // namespace poolrt::cuda_driver
