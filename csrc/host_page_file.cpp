#include "host_page_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

#include "driver.hpp"

namespace poolrt::host_driver {

PageFile::~PageFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

int PageFile::take(std::size_t nbytes, off_t* offset) {
  if (nbytes > static_cast<std::size_t>(std::numeric_limits<off_t>::max() - end_)) return kOperatingSystem;
  if (descriptor_ < 0) descriptor_ = memfd_create("poolrt pages", MFD_CLOEXEC);
  if (descriptor_ < 0) return kOperatingSystem;
  const off_t new_end = end_ + static_cast<off_t>(nbytes);
  if (ftruncate(descriptor_, new_end) != 0) {
    close_if_unused();
    return kOperatingSystem;
  }
  *offset = end_;
  end_ = new_end;
  ++pieces_;
  return kSuccess;
}

void PageFile::give_back(off_t offset, std::size_t nbytes) {
  --pieces_;
  close_if_unused();
  if (descriptor_ < 0) return;
  constexpr int kHole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  while (fallocate(descriptor_, kHole, offset, static_cast<off_t>(nbytes)) != 0 && errno == EINTR) {
  }
}

void PageFile::close_if_unused() {
  if (pieces_ != 0 || descriptor_ < 0) return;
  close(descriptor_);
  descriptor_ = -1;
  end_ = 0;
}

}  // namespace poolrt::host_driver
