#include "vcard_hazards.hpp"

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "vcard_card.hpp"
#include "vcard_memory.hpp"
#include "vcard_order.hpp"

namespace poolrt::vcard {
namespace {

using Key = StreamOrder::Key;

constexpr std::size_t kMostSentences = 100;

struct Watched {
  Key home;                                                 // the stream it was made in
  std::vector<Key> allowed;                                 // by record_stream
  std::vector<std::pair<Key, StreamOrder::Position>> uses;  // the last one of every other stream
  int card = 0;
  std::size_t nbytes = 0;
};

std::string stream_name(Key stream) {
  const std::string card = "vcard:" + std::to_string(StreamOrder::card_of(stream));
  const c10::StreamId id = StreamOrder::id_of(stream);
  return id == 0 ? "the default stream of " + card : "stream " + std::to_string(id) + " of " + card;
}

struct Hazards {
  std::mutex mutex;
  StreamOrder order;
  std::unordered_map<void*, Watched> blocks;  // a block that is in here has watched memory, see watch()
  std::vector<std::string> sentences;

  Watched& watched(const c10::DataPtr& memory) {
    if (is_watched(memory)) return blocks[memory.get()];
    watch(memory);
    Watched fresh{};
    fresh.home = StreamOrder::key_of(c10::Stream(c10::Stream::DEFAULT, memory.device()));
    return blocks[memory.get()] = std::move(fresh);
  }

  void judge(const Watched& block) {
    for (const auto& [stream, position] : block.uses) {
      const bool allowed = std::find(block.allowed.begin(), block.allowed.end(), stream) != block.allowed.end();
      if (allowed || order.knows(block.home, stream, position) || sentences.size() == kMostSentences) continue;
      sentences.push_back("a tensor of " + std::to_string(block.nbytes) +
                          " bytes on vcard:" + std::to_string(block.card) + ", made in " + stream_name(block.home) +
                          ", was freed while " + stream_name(stream) +
                          " may still use it; call tensor.record_stream(stream) before it is freed, or let " +
                          stream_name(block.home) + " wait for that use");
    }
  }
};

Hazards& all() {
  static auto* instance = new Hazards;
  return *instance;
}

// Memory that is made while a side stream is current is that stream's own.
bool made(int card, void* block) {
  const c10::Stream stream = current_stream(card);
  if (!is_side(stream)) return false;
  const std::lock_guard<std::mutex> lock(all().mutex);
  Watched fresh{};
  fresh.home = StreamOrder::key_of(stream);
  all().blocks[block] = std::move(fresh);
  return true;
}

void freed(void* block) {
  const std::lock_guard<std::mutex> lock(all().mutex);
  const auto found = all().blocks.find(block);
  if (found == all().blocks.end()) return;
  all().judge(found->second);
  all().blocks.erase(found);
}

}  // namespace

void install_hazards() { set_watcher({&made, &freed}); }

void note_use(const at::Tensor& tensor, const c10::Stream& stream) {
  const c10::DataPtr& memory = tensor.storage().data_ptr();
  const bool elsewhere = is_side(stream) || stream.device() != tensor.device();
  if (memory.get() == nullptr || !is_ours(memory) || (!elsewhere && !is_watched(memory))) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  const Key key = StreamOrder::key_of(stream);
  Watched& block = all().watched(memory);
  block.card = tensor.device().index();
  block.nbytes = tensor.storage().nbytes();
  if (key == block.home) return;
  const StreamOrder::Position position = all().order.next_work(key);
  for (auto& [user, last] : block.uses) {
    if (user == key) {
      last = position;
      return;
    }
  }
  block.uses.emplace_back(key, position);
}

void note_allowed(const c10::DataPtr& memory, const c10::Stream& stream) {
  if (memory.get() == nullptr || !is_ours(memory) || (!is_watched(memory) && !is_side(stream))) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  std::vector<Key>& allowed = all().watched(memory).allowed;
  const Key key = StreamOrder::key_of(stream);
  if (std::find(allowed.begin(), allowed.end(), key) == allowed.end()) allowed.push_back(key);
}

void note_recorded(Event event, const c10::Stream& stream) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.recorded(event, StreamOrder::key_of(stream));
}

void note_forgotten(Event event) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.forgotten(event);
}

void note_waited(const c10::Stream& stream, Event event) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.waited(StreamOrder::key_of(stream), event);
}

void note_waited(const c10::Stream& stream, const c10::Stream& other) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.waited_for_stream(StreamOrder::key_of(stream), StreamOrder::key_of(other));
}

void note_finished(Event event) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.finished_event(event);
}

void note_finished(const c10::Stream& stream) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.finished(StreamOrder::key_of(stream));
}

void note_finished_card(int card) {
  if (!hazards_are_watched()) return;
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().order.finished_card(card);
}

std::vector<std::string> hazards() {
  const std::lock_guard<std::mutex> lock(all().mutex);
  return all().sentences;
}

void reset_hazards() {
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().sentences.clear();
}

}  // namespace poolrt::vcard
