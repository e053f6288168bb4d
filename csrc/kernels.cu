// Copies that neither a copy engine nor torch does in one go: strided, with a cast, into a sum, many small ones at
// once. poolrt/transfer/kernels plans their launches; numba_body.py there is the same in Python, kernel by kernel.
//
// Every kernel takes (target, source, numbers): any grid does, as threads stride over the work. Target and source never
// overlap. 10 packs, which are a few neighbouring elements each, in 2 blocks of 3 threads:
//
//   pack      0  1  2  3  4  5 | 6  7  8  9
//   thread    0  1  2  0  1  2 | 0  1  2  0
//   block     0  0  0  1  1  1 | 0  0  0  1
#include "kernels_numbers.cuh"

constexpr int kMostDimensions = 8;
constexpr int kGroupBytes = 16;           // the widest load and store
constexpr int64 kChunkBytes = 16 * 1024;  // of copy_many: what a block takes at a time

// The positions that a copy visits. The last dimension is the innermost; positions count elements.
struct Walk {
  int64 dimensions;
  int64 target_start, source_start;
  int64 extents[kMostDimensions];  // of the last dimension: in packs
  int64 target_strides[kMostDimensions];
  int64 source_strides[kMostDimensions];
};

template <typename Index>
struct Position {
  Index target, source;
};

template <typename Index>
__device__ inline Position<Index> locate(const Walk& walk, Index pack) {
  Position<Index> at = {static_cast<Index>(walk.target_start), static_cast<Index>(walk.source_start)};
#pragma unroll
  for (int back = 1; back <= kMostDimensions; ++back) {  // unrolled with an early end: the walk stays in registers
    const int dimension = static_cast<int>(walk.dimensions) - back;
    if (dimension < 0) break;
    const Index extent = static_cast<Index>(walk.extents[dimension]);
    const Index quotient = dimension > 0 ? pack / extent : 0;  // of the outermost dimension all is left
    const Index step = pack - quotient * extent;
    at.target += step * static_cast<Index>(walk.target_strides[dimension]);
    at.source += step * static_cast<Index>(walk.source_strides[dimension]);
    pack = quotient;
  }
  return at;
}

template <typename Number, int Items>
struct alignas(sizeof(Number) * Items) Pack {
  Number items[Items];
};

template <typename Index>
__device__ inline Index first_thread() {
  return static_cast<Index>(blockIdx.x) * static_cast<Index>(blockDim.x) + static_cast<Index>(threadIdx.x);
}

template <typename Index>
__device__ inline Index all_threads() {
  return static_cast<Index>(gridDim.x) * static_cast<Index>(blockDim.x);
}

// target[...] = source[...], each number converted.
template <typename From, typename To, int Items, typename Index>
__global__ void copy_strided(To* target, const From* source, int64 packs, const Walk walk) {
  for (Index pack = first_thread<Index>(); pack < static_cast<Index>(packs); pack += all_threads<Index>()) {
    const Position<Index> at = locate<Index>(walk, pack);
    const auto from = *reinterpret_cast<const Pack<From, Items>*>(source + at.source);
    Pack<To, Items> to;
#pragma unroll
    for (int item = 0; item < Items; ++item) to.items[item] = convert<To>(from.items[item]);
    *reinterpret_cast<Pack<To, Items>*>(target + at.target) = to;
  }
}

// target[...] += source[...], in the type that torch promotes the two to.
template <typename From, typename Common, typename To, int Items, typename Index>
__global__ void add_strided(To* target, const From* source, int64 packs, const Walk walk) {
  for (Index pack = first_thread<Index>(); pack < static_cast<Index>(packs); pack += all_threads<Index>()) {
    const Position<Index> at = locate<Index>(walk, pack);
    const auto from = *reinterpret_cast<const Pack<From, Items>*>(source + at.source);
    auto* const place = reinterpret_cast<Pack<To, Items>*>(target + at.target);
    Pack<To, Items> to = *place;
#pragma unroll
    for (int item = 0; item < Items; ++item) {
      to.items[item] = convert<To>(sum(convert<Common>(to.items[item]), convert<Common>(from.items[item])));
    }
    *place = to;
  }
}

// The threads thread, thread + threads, ... of a run of bytes. Stores are as wide as can be; loads as the source lies:
//
//   target   ..|t t t|T T T T T T T T T T T T T T T T|T T ...|t t    16-byte stores after the head
//   source   ..|s s s|S S S S|S S S S|S S S S|S S S S|S S ...|s s    here 4-byte loads
template <typename Word>
__device__ inline void copy_run(word8* __restrict__ target, const word8* __restrict__ source, int64 nbytes,
                                int64 thread, int64 threads) {
  constexpr int kWords = kGroupBytes / static_cast<int>(sizeof(Word));
  const int64 unaligned = static_cast<int64>(reinterpret_cast<word64>(target) % kGroupBytes);
  const int64 to_group = unaligned == 0 ? 0 : kGroupBytes - unaligned;
  const int64 head = to_group < nbytes ? to_group : nbytes;
  const int64 groups = (nbytes - head) / kGroupBytes;
  for (int64 group = thread; group < groups; group += threads) {
    union {
      word128 whole;
      Word words[kWords];
    } both;
    const Word* const from = reinterpret_cast<const Word*>(source + head + group * kGroupBytes);
#pragma unroll
    for (int word = 0; word < kWords; ++word) both.words[word] = from[word];
    *reinterpret_cast<word128*>(target + head + group * kGroupBytes) = both.whole;
  }
  for (int64 byte = thread; byte < head; byte += threads) target[byte] = source[byte];
  for (int64 byte = head + groups * kGroupBytes + thread; byte < nbytes; byte += threads) target[byte] = source[byte];
}

__device__ inline void copy_any_run(word8* target, const word8* source, int64 nbytes, int64 thread, int64 threads) {
  const word64 apart = reinterpret_cast<word64>(target) - reinterpret_cast<word64>(source);
  if (apart % sizeof(word128) == 0) {
    copy_run<word128>(target, source, nbytes, thread, threads);
  } else if (apart % sizeof(word64) == 0) {
    copy_run<word64>(target, source, nbytes, thread, threads);
  } else if (apart % sizeof(word32) == 0) {
    copy_run<word32>(target, source, nbytes, thread, threads);
  } else if (apart % sizeof(word16) == 0) {
    copy_run<word16>(target, source, nbytes, thread, threads);
  } else {
    copy_run<word8>(target, source, nbytes, thread, threads);
  }
}

// Bytes as they are, wherever they begin.
__global__ void copy_bytes(word8* target, const word8* source, int64 nbytes) {
  copy_any_run(target, source, nbytes, first_thread<int64>(), all_threads<int64>());
}

// Many runs of bytes. A run is cut into chunks; the chunks of all runs are numbered, and first_chunks says where those
// of a run begin:
//
//   run            0        1   2              rows of `table`: target offset | source offset | nbytes | first chunk
//   chunks         0  1  2  3   4  5
//   first_chunks   0        3   4
__global__ void copy_many(word8* target, const word8* source, const int64* table, int64 runs, int64 chunks) {
  const int64* const first_chunks = table + 3 * runs;
  for (int64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    int64 run = 0;
    for (int64 beyond = runs; beyond - run > 1;) {  // bisection: first_chunks[run] <= chunk < first_chunks[beyond]
      const int64 middle = (run + beyond) / 2;
      if (first_chunks[middle] <= chunk) {
        run = middle;
      } else {
        beyond = middle;
      }
    }
    const int64 begin = (chunk - first_chunks[run]) * kChunkBytes;
    const int64 left = table[2 * runs + run] - begin;
    copy_any_run(target + table[run] + begin, source + table[runs + run] + begin,
                 left < kChunkBytes ? left : kChunkBytes, threadIdx.x, blockDim.x);
  }
}

#ifdef __CUDA_ARCH__
__device__ inline int64 now_ns() {
  int64 time_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time_ns));
  return time_ns;
}
__device__ inline void nap(int64 nap_ns) { __nanosleep(static_cast<uint32>(nap_ns)); }
#endif

// Holds its stream until somebody, usually the host, makes the flag anything but 0, or until the time is over.
// The outcome is 1 when the flag was seen, 2 when time was over.
__global__ void hold(int32* outcome, const volatile int32* flag, int64 limit_ns, int64 nap_ns) {
  const int64 began_ns = now_ns();
  while (*flag == 0) {
    if (now_ns() - began_ns >= limit_ns) {
      *outcome = 2;
      return;
    }
    nap(nap_ns);
  }
  *outcome = 1;
}
