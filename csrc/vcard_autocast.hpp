#pragma once

#include <c10/core/ScalarType.h>

namespace poolrt::vcard {

// While it lives, the CPU's autocast on this thread is what the virtual cards' is: for operators whose pieces run on
// the CPU under the eyes of autocast.
class CpuAutocastLikeCards {
 public:
  CpuAutocastLikeCards();
  CpuAutocastLikeCards(const CpuAutocastLikeCards&) = delete;
  CpuAutocastLikeCards& operator=(const CpuAutocastLikeCards&) = delete;
  ~CpuAutocastLikeCards();

 private:
  bool outer_enabled_;
  c10::ScalarType outer_type_;
};

}  // namespace poolrt::vcard
