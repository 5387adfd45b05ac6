// What the sampling kernels share: a row's parameters, its slices, its noise, and the order of tokens.
//
// A row is cut into slices of the same length, whatever the batch; a block reads a slice once, into registers. How far
// a token lies below the likeliest, after temperature, is its *depth*: (max - score) / temperature, 0 or more, which is
// bit for bit what the CPU's sampler computes, its sign apart.
//
// Next: kernels/include/sampling_cut.cuh
#pragma once

#include "vector.cuh"

namespace tessera {

using u64 = unsigned long long;

constexpr int kSamplingThreads = 256;
constexpr int kNeighbours = 4;       // scores that a thread reads at once
constexpr int kScoresPerThread = 16;  // of a slice
constexpr int kSliceLength = kSamplingThreads * kScoresPerThread;

// Noise lies in [-2.82, 22.19], so what is deeper than 26 never beats the likeliest token; and all tokens deeper than
// 32 together have less than 2^-27 of the likeliest one's probability, which fp32 sums do not see either.
constexpr float kMaxDepth = 32.0f;
constexpr float kMaxNoise = 22.2f;

// One row to draw, as the host writes it (ROW in tessera_kernels/sampling.py).
struct SamplingRow {
  int32_t source;     // row of the logits
  int32_t changed;    // row of the changed logits; -1: nothing changes them
  float temperature;  // 0: the likeliest token is taken
  int32_t top_k;      // 0: all
  float top_p;        // 1: all
  float reach;        // -log(min_p): how deep a token may lie; infinity: any
  uint32_t key[2];    // of the noise
  int32_t num_top;    // -1: no log probabilities; else how many tokens' beside the drawn one's
};

// Tokens in one order of 64-bit numbers: the larger score is the larger number, the lower id that of equals. NaN is
// above all, as torch has it; -0 equals 0.
__device__ __forceinline__ u64 ranked(float score, int token) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  const uint32_t ordered = score != score ? 0xffffffffu : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return u64(ordered) << 32 | uint32_t(~token);
}

__device__ __forceinline__ int token_of(u64 rank) { return int(~uint32_t(rank)); }

__device__ __forceinline__ float score_of(u64 rank) {
  const uint32_t ordered = uint32_t(rank >> 32);
  return __uint_as_float(ordered ^ (ordered >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ __forceinline__ u64 warp_max(u64 value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const u64 other = __shfl_xor_sync(kFullWarp, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Over the block; every thread gets it. `scratch`: one number a warp, free again after the call.
__device__ __forceinline__ u64 block_max(u64 value, u64* scratch) {
  value = warp_max(value);
  if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  value = warp_max(threadIdx.x % kWarpSize < blockDim.x / kWarpSize ? scratch[threadIdx.x % kWarpSize] : 0);
  __syncthreads();
  return value;
}

// ---- slices

__device__ __forceinline__ int token_at(int begin, int number) {
  return begin + (number / kNeighbours * kSamplingThreads + int(threadIdx.x)) * kNeighbours + number % kNeighbours;
}

// A slice's scores, kScoresPerThread a thread: number i is of token_at(begin, i), -infinity beyond the vocabulary.
template <typename T>
__device__ __forceinline__ void load_slice(float (&scores)[kScoresPerThread], const T* row, int begin, int vocab_size,
                                           bool vectors) {
  if (vectors && begin + kSliceLength <= vocab_size) {
    Vector<T, kNeighbours> packed[kScoresPerThread / kNeighbours];
#pragma unroll
    for (int step = 0; step < kScoresPerThread / kNeighbours; ++step)
      packed[step] = load<kNeighbours>(row + token_at(begin, step * kNeighbours));
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) scores[i] = to_float(packed[i / kNeighbours].at[i % kNeighbours]);
  } else {
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) {
      const int token = token_at(begin, i);
      scores[i] = token < vocab_size ? to_float(row[token]) : -INFINITY;
    }
  }
}

// ---- noise

__device__ __forceinline__ uint32_t mixed(uint32_t bits) {
  bits = (bits ^ bits >> 16) * 0x85EBCA6Bu;
  bits = (bits ^ bits >> 13) * 0xC2B2AE35u;
  return bits ^ bits >> 16;
}

// 31 random bits: integer arithmetic, the same on every device and in worker/engine/noise.py's terms.
// Source: finaliser of MurmurHash3 (Appleby, public domain), applied twice.
__device__ __forceinline__ uint32_t noise_bits(const uint32_t (&key)[2], int token) {
  return mixed(mixed(uint32_t(token) * 0x9E3779B9u + key[0]) ^ key[1]) & 0x7fffffffu;
}

// In (0, 1 - 2^-24]: exact arithmetic but for two roundings to nearest, so the same on every device as well.
__device__ __forceinline__ float uniform_of(uint32_t bits) {
  return fminf((float(int(bits)) + 0.5f) * 4.656612873077393e-10f, 1.0f - 5.9604644775390625e-8f);
}

// Standard Gumbel noise. Here devices differ, by the last bits of their logarithms: two workers draw different tokens
// where the best two scores are within that rounding of each other, less than once in a million draws. It could be
// avoided only by a logarithm of our own on all devices; torch's own differs between a tensor's vectors and its rest.
__device__ __forceinline__ float gumbel_of(float uniform) { return -logf(-log1pf(-uniform)); }

// The race of tokens for the largest score with noise, as one thread runs it.
struct Race {
  u64 best;
  float best_score;

  // Begins with the likeliest token, which every cut keeps: most others are then known to lose before their noise is.
  __device__ __forceinline__ Race(const uint32_t (&key)[2], int likeliest) {
    best_score = gumbel_of(uniform_of(noise_bits(key, likeliest)));
    best = ranked(best_score, likeliest);
  }

  __device__ __forceinline__ void enter(const uint32_t (&key)[2], int token, float depth) {
    if (kMaxNoise - depth < best_score) return;
    const float uniform = uniform_of(noise_bits(key, token));
    // -log(-log(1 - u)) is at most -log(u); the margin is for the fast logarithm's error.
    if (1e-3f - __logf(uniform) - depth < best_score) return;
    const float score = gumbel_of(uniform) - depth;
    const u64 rank = ranked(score, token);
    if (rank <= best) return;
    best = rank;
    best_score = score;
  }
};

}  // namespace tessera
