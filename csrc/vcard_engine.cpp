#include "vcard_engine.hpp"

#include <torch/csrc/autograd/engine.h>

#include <memory>
#include <thread>
#include <vector>

#include "driver.hpp"

namespace poolrt::vcard {
namespace {

using torch::autograd::Engine;
using torch::autograd::ReadyQueue;
using Queues = std::vector<std::shared_ptr<ReadyQueue>>;

// The queues are open to subclasses only.
class OpenEngine : public Engine {
 public:
  static Queues& queues_of(Engine& engine) { return engine.*(&OpenEngine::device_ready_queues_); }
};

}  // namespace

void grow_autograd() {
  Engine& engine = Engine::get_default_engine();
  Queues& queues = OpenEngine::queues_of(engine);
  while (queues.size() < kMaxCards) {
    const int device = static_cast<int>(queues.size());
    queues.push_back(std::make_shared<ReadyQueue>());
    std::thread([&engine, device, queue = queues.back()] { engine.thread_init(device, queue, true); }).detach();
  }
}

}  // namespace poolrt::vcard
