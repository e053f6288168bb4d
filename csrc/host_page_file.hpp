// The memory of one place's pages: a nameless file in memory, of which each piece is used once.
//
//     file:   | in use | hole | in use | hole | in use |end        a new piece goes to the end, a hole holds no memory
//
// One file for all pages of a place, because a file for each would use up the descriptors of a process (often 1024).
// The file is closed with its last piece. Not for several threads at once.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace poolrt::host_driver {

class PageFile {
 public:
  PageFile() = default;
  PageFile(const PageFile&) = delete;
  PageFile& operator=(const PageFile&) = delete;
  ~PageFile();

  int take(std::size_t nbytes, off_t* offset);  // zeros; kOperatingSystem when the system refuses
  void give_back(off_t offset, std::size_t nbytes);
  int descriptor() const { return descriptor_; }

 private:
  void close_if_unused();

  int descriptor_ = -1;
  off_t end_ = 0;
  std::uint64_t pieces_ = 0;
};

}  // namespace poolrt::host_driver
