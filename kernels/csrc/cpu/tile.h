// The one inner loop of GEMM and attention: a tile of MR rows by two vectors, in registers over the whole of k.
//
// Next: kernels/csrc/cpu/panels.h

#pragma once

#include "vec.h"

namespace tessera {

// With two vectors a row this leaves registers for the row's two operands and a broadcast.
#if defined(__AVX512F__)
constexpr int kMaxTileRows = 12;
#else
constexpr int kMaxTileRows = 6;
#endif
constexpr int kTileColumns = 2 * kLanes;

// Element (row, k) of the operand whose values are broadcast. In a packed block of MR rows, k by k:
struct Packed {
  const float* data;
  template <int MR>
  float at(int row, long k) const {
    return data[k * MR + row];
  }
};

// ... k by k with a fixed distance, ...
template <int kStep>
struct Stepped {
  const float* data;
  template <int MR>
  float at(int row, long k) const {
    return data[k * kStep + row];
  }
};

// ... row by row with a fixed distance, ...
template <int kStep>
struct Stacked {
  const float* data;
  template <int MR>
  float at(int row, long k) const {
    return data[row * kStep + k];
  }
};

// ... and anywhere else, which costs an address for each row.
struct Strided {
  const float* data;
  long row_stride, k_stride;
  template <int MR>
  float at(int row, long k) const {
    return data[row * row_stride + k * k_stride];
  }
};

// c[row][0..1] (+)= sum over k of a(row, k) * (b0[k * b_stride ..], b1[k * b_stride ..]).
//
// kAhead: floats of B fetched ahead of their use; 0 where B is in the cache, or its end is near.
// kFixedOrder: each row's sum is taken in the same order whatever MR is.
// c: row r at c0 + r * c_stride and c1 + r * c_stride; added to where `accumulate` is set, else overwritten.
template <int MR, int kAhead, bool kFixedOrder = false, typename A>
static inline void tile(A a, const float* b0, const float* b1, long b_stride, long depth, float* c0, float* c1,
                        long c_stride, bool accumulate) {
  // A few rows alone would wait for each other's sums: several partial sums, taken over k in turn.
  constexpr int kUnroll = kFixedOrder ? 1 : MR == 1 ? 4 : MR <= 3 ? 2 : 1;
  vfloat sum[kUnroll][MR][2] = {};
  long k = 0;
  for (; k + kUnroll <= depth; k += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      const long at = (k + u) * b_stride;
      if constexpr (kAhead > 0) {
        __builtin_prefetch(b0 + at + kAhead);
        if (kLanes == kPanel) __builtin_prefetch(b1 + at + kAhead);
      }
      const vfloat left = load(b0 + at), right = load(b1 + at);
#pragma GCC unroll 16
      for (int row = 0; row < MR; ++row) {
        const vfloat value = splat(a.template at<MR>(row, k + u));
        sum[u][row][0] += value * left;
        sum[u][row][1] += value * right;
      }
    }
  }
  for (long rest = depth % kUnroll; rest > 0; --rest, ++k) {
    const vfloat left = load(b0 + k * b_stride), right = load(b1 + k * b_stride);
#pragma GCC unroll 16
    for (int row = 0; row < MR; ++row) {
      const vfloat value = splat(a.template at<MR>(row, k));
      sum[0][row][0] += value * left;
      sum[0][row][1] += value * right;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < MR; ++row) {
    vfloat left = sum[0][row][0], right = sum[0][row][1];
    for (int u = 1; u < kUnroll; ++u) {
      left += sum[u][row][0];
      right += sum[u][row][1];
    }
    float *to0 = c0 + row * c_stride, *to1 = c1 + row * c_stride;
    store(to0, accumulate ? load(to0) + left : left);
    store(to1, accumulate ? load(to1) + right : right);
  }
}

// Runs `tile` with a number of rows that is known only now: 1 to kMaxTileRows.
template <int kAhead, bool kFixedOrder = false, typename A>
static inline void run_tile(int rows, A a, const float* b0, const float* b1, long b_stride, long depth, float* c0,
                            float* c1, long c_stride, bool accumulate) {
#define TESSERA_TILE(MR)                                                                            \
  case MR:                                                                                          \
    if constexpr (MR <= kMaxTileRows)                                                               \
      tile<MR, kAhead, kFixedOrder>(a, b0, b1, b_stride, depth, c0, c1, c_stride, accumulate);      \
    break;
  switch (rows) {
    TESSERA_TILE(1)
    TESSERA_TILE(2)
    TESSERA_TILE(3)
    TESSERA_TILE(4)
    TESSERA_TILE(5)
    TESSERA_TILE(6)
    TESSERA_TILE(7)
    TESSERA_TILE(8)
    TESSERA_TILE(9)
    TESSERA_TILE(10)
    TESSERA_TILE(11)
    TESSERA_TILE(12)
  }
#undef TESSERA_TILE
}

}  // namespace tessera
