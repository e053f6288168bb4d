// The thread that makes the copies of streams over modelled links: each piece of a copy at its time.
//
//     one copy of n pieces    | latency | piece 1 | piece 2 | ... | piece n |
//                                                 ^ moved here    ^         ^ and here: it has arrived
//
// One thread serves all links. It starts with the first copy, ends after a while without any, and holds no lock while
// it moves bytes.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <functional>
#include <mutex>
#include <vector>

#include "driver.hpp"
#include "host_links.hpp"

namespace poolrt::host_driver {

// Moves bytes [begin, end) of a copy.
void move_bytes(const StreamCopy& copy, std::size_t begin, std::size_t end, std::size_t wrong_byte);

// One copy on its way.
class Carriage {
 public:
  Carriage(const StreamCopy& copy, const Passage& passage, std::function<void()> arrived);

  Moment due() const { return due_; }
  bool move_piece();  // true with the last one; `arrive` is then to be called
  void arrive() const { arrived_(); }

 private:
  Moment due_of(std::size_t piece) const;

  StreamCopy copy_;
  Passage passage_;
  std::function<void()> arrived_;
  std::size_t pieces_;
  std::size_t moved_ = 0;
  Moment due_;
};

class Carrier {
 public:
  // Calls `arrived` in the carrier's thread when all is done. kOperatingSystem where no thread can be had.
  int carry(Carriage carriage);

  // Around fork(): the child has no thread until it needs one.
  void before_fork() { mutex_.lock(); }
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child();

 private:
  bool start_thread();
  void run();
  Carriage take_next();
  void put(Carriage carriage);

  std::mutex mutex_;
  std::condition_variable more_;
  std::vector<Carriage> carriages_;  // a heap: the next one due on top
  bool running_ = false;
};

Carrier& carrier();

}  // namespace poolrt::host_driver
