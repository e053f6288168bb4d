// What a CUDA compiler knows by itself, for g++: the kernels of csrc/kernels.cu become functions that run one thread
// after another.
#pragma once

#include <chrono>
#include <thread>

#define __global__
#define __device__

struct ThreadPosition {
  unsigned int x = 0;
};
inline ThreadPosition blockIdx, threadIdx, blockDim, gridDim;

inline long long now_ns() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline void nap(long long nap_ns) { std::this_thread::sleep_for(std::chrono::nanoseconds(nap_ns)); }

// Every thread of every block, one after another: right for kernels whose threads do not wait for one another.
template <typename Thread>
void for_all_threads(unsigned int blocks, unsigned int threads, Thread&& thread) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) thread();
  }
}
