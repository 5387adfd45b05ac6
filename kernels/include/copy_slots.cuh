// Whole slots of a cache to other slots of it, in all layers at once: KV blocks of forks, and recurrent states.
//
// No slot is both a source and a destination, so blocks may copy in any order and nothing is held in between.
//
// Bytes: each slot in once and out once.
//
// Next: kernels/csrc/copy_slots.cu
#pragma once

#include "vector.cuh"

namespace tessera {

template <typename T>
struct CopyArguments {
  T* cache;              // (groups, slots, width)
  const int64_t* pairs;  // (count, 2): source, destination; below zero: none
  int64_t slots, width;
  int count, pieces;  // pieces: blocks of a slot
};

constexpr int kCopyThreads = 256, kCopySteps = 8;

// N: elements that a thread takes at once; a block has `kCopySteps` of them for each thread.
template <typename T, int N>
__global__ void __launch_bounds__(kCopyThreads) copy_slots_kernel(const CopyArguments<T> a) {
  const int piece = int(blockIdx.x) % a.pieces, pair = int(blockIdx.x) / a.pieces % a.count;
  const int64_t group = int64_t(blockIdx.x) / a.pieces / a.count;
  const int64_t source = a.pairs[2 * pair], destination = a.pairs[2 * pair + 1];
  if (source < 0 || destination < 0) return;
  const T* from = a.cache + (group * a.slots + source) * a.width;
  T* to = a.cache + (group * a.slots + destination) * a.width;
  const int64_t first = (int64_t(piece) * kCopySteps * kCopyThreads + threadIdx.x) * N;
#pragma unroll
  for (int step = 0; step < kCopySteps; ++step) {
    const int64_t at = first + int64_t(step) * kCopyThreads * N;
    if (at < a.width) *reinterpret_cast<Vector<T, N>*>(to + at) = load<N>(from + at);
  }
}

}  // namespace tessera
