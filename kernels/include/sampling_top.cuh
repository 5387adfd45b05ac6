// Log probabilities of the raw logits: of the token that was drawn, and of the likeliest ones, in order.
//
// The likeliest n tokens are taken one by one, each the maximum over a warp of what its lanes still hold: by the warps
// of each slice, then from their lists by one warp of each slice, then from the slices' lists at the end.
//
// Next: kernels/csrc/sampling.cu
#pragma once

#include "sampling_race.cuh"

namespace tessera {

constexpr int kMaxTop = kWarpSize;  // lane i keeps the i-th
constexpr int kWarps = kSamplingThreads / kWarpSize;

// Takes the `count` largest of all lanes' numbers, which differ unless they are 0; lane i gets the i-th, others 0.
template <int N>
__device__ __forceinline__ u64 warp_top(u64 (&ranks)[N], int count) {
  const int lane = int(threadIdx.x) % kWarpSize;
  u64 mine = 0;
  for (int taken = 0; taken < count; ++taken) {
    u64 best = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) best = max(best, ranks[i]);
    best = warp_max(best);
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (ranks[i] == best) ranks[i] = 0;
    if (lane == taken) mine = best;
  }
  return mine;
}

// As warp_top, of the lists that the block's warps hold; the first warp gets it. `lists`: kSamplingThreads numbers.
__device__ __forceinline__ u64 block_top(u64 mine, int count, u64* lists) {
  lists[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    u64 ranks[kWarps];
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) ranks[warp] = lists[warp * kWarpSize + threadIdx.x];
    mine = warp_top(ranks, count);
  }
  __syncthreads();
  return mine;
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads) sampling_top_kernel(const SamplingArguments<T> a) {
  SHARED(u64, lists, kSamplingThreads);
  const int number = int(blockIdx.x) / a.slices, begin = int(blockIdx.x) % a.slices * kSliceLength;
  const SamplingRow row = a.rows[number];
  if (row.num_top <= 0) return;
  float scores[kScoresPerThread];
  load_slice(scores, a.logits + row.source * a.stride, begin, a.vocab_size, a.vectors);
  u64 ranks[kScoresPerThread];
#pragma unroll
  for (int i = 0; i < kScoresPerThread; ++i) {
    const int token = token_at(begin, i);
    ranks[i] = token < a.vocab_size ? ranked(scores[i], token) : 0;
  }
  const int count = min(row.num_top, a.num_top);
  const u64 mine = block_top(warp_top(ranks, count), count, lists);
  if (int(threadIdx.x) < count) a.top[int64_t(blockIdx.x) * a.num_top + threadIdx.x] = mine;
}

// The row's likeliest tokens from its slices' lists; thread i gets the i-th.
template <typename T>
__device__ __forceinline__ u64 row_top(const SamplingArguments<T>& a, int number, int count, u64* lists) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  u64 mine = 0;
  for (int first = warp; first < a.slices; first += kWarps * kWarps) {
    u64 ranks[kWarps + 1];
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const int slice = first + i * kWarps;
      const bool held = slice < a.slices && lane < count;
      ranks[i] = held ? a.top[(int64_t(number) * a.slices + slice) * a.num_top + lane] : 0;
    }
    ranks[kWarps] = mine;
    mine = warp_top(ranks, count);
  }
  return block_top(mine, count, lists);
}

struct Normaliser {
  float max, log_sum;

  __device__ __forceinline__ float operator()(float logit) const { return (logit - max) - log_sum; }
};

// Every warp finds it by itself, in the same order of additions.
template <typename T>
__device__ __forceinline__ Normaliser normaliser_of(const SamplingArguments<T>& a, int number) {
  const SliceSummary* summaries = a.summaries + int64_t(number) * a.slices;
  float largest = Max::kNeutral, sum = 0.0f;
  for (int slice = int(threadIdx.x) % kWarpSize; slice < a.slices; slice += kWarpSize)
    largest = fmaxf(largest, summaries[slice].raw_max);
  largest = reduce_warp<Max>(largest);
  for (int slice = int(threadIdx.x) % kWarpSize; slice < a.slices; slice += kWarpSize)
    sum += summaries[slice].raw_sum * expf(summaries[slice].raw_max - largest);
  return {largest, logf(reduce_warp<Sum>(sum))};
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads, 2) sampling_finish_kernel(const SamplingArguments<T> a) {
  SHARED(u64, scratch, kWarpSize);
  SHARED(u64, lists, kSamplingThreads);
  const int number = int(blockIdx.x), thread = int(threadIdx.x);
  const SamplingRow row = a.rows[number];
  const int token = drawn_token(a, row, number, scratch);
  int32_t* out = a.out + number * int64_t(a.num_top < 0 ? 1 : 2 + 2 * a.num_top);
  if (thread == 0) out[0] = token;
  if (a.num_top < 0) return;
  const Normaliser normal = normaliser_of(a, number);
  const float logprob = normal(to_float(a.logits[row.source * a.stride + token]));
  if (thread == 0) out[1] = row.num_top < 0 ? 0 : __float_as_int(logprob);
  const int count = min(row.num_top, a.num_top);
  const u64 rank = count > 0 ? row_top(a, number, count, lists) : 0;
  if (thread >= a.num_top) return;
  out[2 + thread] = thread < count ? token_of(rank) : -1;
  out[2 + a.num_top + thread] = thread < count ? __float_as_int(normal(score_of(rank))) : 0;
}

}  // namespace tessera
