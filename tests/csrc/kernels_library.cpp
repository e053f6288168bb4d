// The CUDA kernels as a library of host code. KERNEL_LIST names a file with lines
//
//   STRIDED(copy_strided, float32, bfloat16, 4, int32)
#include "kernels_on_host.hpp"
// must come after
#include <cstdlib>
#include <map>
#include <string>

#include "kernels.cu"

namespace {

using Strided = void (*)(void* target, const void* source, int64 packs, const Walk& walk);

template <auto kernel, typename To, typename From>
void run_one(void* target, const void* source, int64 packs, const Walk& walk) {
  kernel(static_cast<To*>(target), static_cast<const From*>(source), packs, walk);
}

const std::map<std::string, Strided>& strided() {
  static const std::map<std::string, Strided> all = {
#define COPY(text, From, To, Items, Index) {text, &run_one<&copy_strided<From, To, Items, Index>, To, From>},
#define ADD(text, From, Common, To, Items, Index) \
  {text, &run_one<&add_strided<From, Common, To, Items, Index>, To, From>},
#include KERNEL_LIST
  };
  return all;
}

}  // namespace

// False if there is no kernel of that name.
extern "C" bool launch_strided(const char* name, unsigned int blocks, unsigned int threads, void* target,
                               const void* source, int64 packs, const Walk* walk) {
  const auto found = strided().find(name);
  if (found == strided().end()) return false;
  for_all_threads(blocks, threads, [&] { found->second(target, source, packs, *walk); });
  return true;
}

extern "C" void launch_bytes(unsigned int blocks, unsigned int threads, word8* target, const word8* source,
                             int64 nbytes) {
  for_all_threads(blocks, threads, [&] { copy_bytes(target, source, nbytes); });
}

extern "C" void launch_many(unsigned int blocks, unsigned int threads, word8* target, const word8* source,
                            const int64* table, int64 runs, int64 chunks) {
  for_all_threads(blocks, threads, [&] { copy_many(target, source, table, runs, chunks); });
}

extern "C" void launch_hold(int32* outcome, const int32* flag, int64 limit_ns, int64 nap_ns) {
  for_all_threads(1, 1, [&] { hold(outcome, flag, limit_ns, nap_ns); });
}
