#include "host_carrier.hpp"

#include <pthread.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

namespace poolrt::host_driver {
namespace {

constexpr std::size_t kLeastPieces = 8;
constexpr std::size_t kLargestPiece = 1 << 20;  // moved in some 0.2 ms: another link's piece is late by no more
constexpr auto kIdle = std::chrono::milliseconds(100);

bool is_later(const Carriage& a, const Carriage& b) { return a.due() > b.due(); }

}  // namespace

void move_bytes(const StreamCopy& copy, std::size_t begin, std::size_t end, std::size_t wrong_byte) {
  auto* to = static_cast<unsigned char*>(copy.to);
  std::memmove(to + begin, static_cast<const unsigned char*>(copy.from) + begin, end - begin);
  if (begin <= wrong_byte && wrong_byte < end) to[wrong_byte] = static_cast<unsigned char>(~to[wrong_byte]);
}

Carriage::Carriage(const StreamCopy& copy, const Passage& passage, std::function<void()> arrived)
    : copy_(copy),
      passage_(passage),
      arrived_(std::move(arrived)),
      pieces_(passage.modelled ? std::max(kLeastPieces, copy.nbytes / kLargestPiece) : 1),
      due_(due_of(1)) {}

Moment Carriage::due_of(std::size_t piece) const {
  if (piece >= pieces_) return passage_.arrival;
  const auto each = (passage_.arrival - passage_.first_byte) / static_cast<Clock::rep>(pieces_);
  return passage_.first_byte + each * static_cast<Clock::rep>(piece);
}

bool Carriage::move_piece() {
  if (passage_.fails) return true;
  const std::size_t each = copy_.nbytes / pieces_;
  const std::size_t begin = each * moved_;
  ++moved_;
  move_bytes(copy_, begin, moved_ == pieces_ ? copy_.nbytes : begin + each, passage_.wrong_byte);
  due_ = due_of(moved_ + 1);
  return moved_ == pieces_;
}

int Carrier::carry(Carriage carriage) {
  const std::lock_guard<std::mutex> lock(mutex_);
  carriages_.reserve(carriages_.size() + 2);  // the thread puts one back
  if (!running_ && !start_thread()) return kOperatingSystem;
  put(std::move(carriage));
  more_.notify_one();
  return kSuccess;
}

bool Carrier::start_thread() {
  try {
    std::thread thread([this] { run(); });
    pthread_setname_np(thread.native_handle(), "poolrt-carrier");
    thread.detach();
    running_ = true;
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

void Carrier::run() {
  prctl(PR_SET_TIMERSLACK, 1UL);  // nanoseconds: by default every piece would be moved some 0.05 ms late
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    if (carriages_.empty() && !more_.wait_for(lock, kIdle, [this] { return !carriages_.empty(); })) break;
    const Moment due = carriages_.front().due();
    if (Clock::now() < due - kWakeUp) {
      more_.wait_until(lock, due - kWakeUp);  // or until a copy comes that may be due before
      continue;
    }
    Carriage next = take_next();
    lock.unlock();
    while (Clock::now() < due) std::this_thread::yield();
    const bool done = next.move_piece();
    if (done) next.arrive();
    lock.lock();
    if (!done) put(std::move(next));
  }
  running_ = false;
}

void Carrier::put(Carriage carriage) {
  carriages_.push_back(std::move(carriage));
  std::push_heap(carriages_.begin(), carriages_.end(), is_later);
}

Carriage Carrier::take_next() {
  std::pop_heap(carriages_.begin(), carriages_.end(), is_later);
  Carriage next = std::move(carriages_.back());
  carriages_.pop_back();
  return next;
}

// A copy that was on its way in the parent has no thread here; it is made as soon as another one is asked for.
void Carrier::after_fork_in_child() {
  new (&more_) std::condition_variable;  // the parent's thread may have been waiting on it
  running_ = false;
  mutex_.unlock();
}

// Never destroyed: its thread may still wait while the process ends.
Carrier& carrier() {
  static Carrier* const instance = [] {
    auto* made = new Carrier;
    pthread_atfork([] { carrier().before_fork(); }, [] { carrier().after_fork_in_parent(); },
                   [] { carrier().after_fork_in_child(); });
    return made;
  }();
  return *instance;
}

}  // namespace poolrt::host_driver
