// Operands of the products that walk through chunks, a warp's: tf32 that keeps the digits of fp32.
//
// tf32 has 11 digits: 16-bit elements are exact in it. An fp32 operand is taken as the sum of two, its rounded upper
// part and what is left, which keeps 22 digits and more; where both operands are fp32, three of the four products are
// taken. What mma calls columns m and m + 4 of a left operand, and rows of a right one, are neighbours 2m and 2m + 1
// here, as ldmatrix hands them out.
//
// Next: kernels/csrc/gated_delta_chunks.cu
#pragma once

#include "gated_delta_chunk.cuh"

namespace tessera {

// Two neighbours along k of an fp32 operand, as the sum of two that tf32 holds.
struct SplitPair {
  uint32_t upper[2], lower[2];

  __device__ __forceinline__ SplitPair(float first, float second) {
    split(first, upper[0], lower[0]);
    split(second, upper[1], lower[1]);
  }

  __device__ __forceinline__ static void split(float x, uint32_t& upper, uint32_t& lower) {
    upper = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    lower = __float_as_uint(x - __uint_as_float(upper));
  }
};

// A left operand of 16 x 8 from words of ldmatrix: of its upper and lower rows, two neighbours along k each.
template <typename T>
__device__ __forceinline__ void widen(uint32_t (&out)[4], uint32_t upper_rows, uint32_t lower_rows) {
  float upper[2], lower[2];
  unpack_word(upper, upper_rows, T());
  unpack_word(lower, lower_rows, T());
#pragma unroll
  for (int i = 0; i < 2; ++i) out[2 * i] = __float_as_uint(upper[i]), out[2 * i + 1] = __float_as_uint(lower[i]);
}

// 16 rows of a lower triangle, a warp's, in registers: blocks of 16 columns up to the diagonal.
struct TriangleRows {
  float at[kDeltaChunk / 16][2][4];  // [block][half of 8 columns][as mma's]

  // `rows`: the chunk's; `group`: which 16 of them. Rows from `tokens` on are zeros.
  __device__ __forceinline__ void load(const float* rows, int group, int tokens) {
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int block = 0; block < kDeltaChunk / 16; ++block)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower) {
          const int row = group * 16 + lower * 8 + lane / 4;
          float pair[2] = {};
          if (block <= group && row < tokens)
            load_float<2>(pair, rows + int64_t(row) * kDeltaChunk + block * 16 + half * 8 + lane % 4 * 2);
          at[block][half][lower] = pair[0], at[block][half][2 + lower] = pair[1];
        }
  }

  // sums += these rows times a matrix in shared memory, 16 columns of it.
  template <int Pitch>
  __device__ __forceinline__ void multiply(float (&sums)[2][4], const float* matrix, int group) const {
    const int lane = int(threadIdx.x) % kWarpSize;
    float small[2][4] = {};
#pragma unroll
    for (int block = 0; block < kDeltaChunk / 16; ++block) {
      if (block > group) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t upper[4], lower[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) SplitPair::split(at[block][half][i], upper[i], lower[i]);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const float* from = matrix + (block * 16 + half * 8 + lane % 4 * 2) * Pitch + tile * 8 + lane / 4;
          const SplitPair pair(from[0], from[Pitch]);
          mma_m16n8k8_tf32(sums[tile], upper, pair.upper);
          mma_m16n8k8_tf32(small[tile], upper, pair.lower);
          mma_m16n8k8_tf32(small[tile], lower, pair.upper);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[tile][i] += small[tile][i];
  }
};

}  // namespace tessera
