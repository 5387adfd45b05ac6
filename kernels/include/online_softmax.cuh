// Softmax of rows whose scores come in pieces: the largest score so far is what all exponents are relative to, and when
// it grows, what was summed before shrinks by one factor.
//
// Scores are unscaled; `scale_log2e` is their scale (positive) times log2(e), so that a weight is one FMA and one exp2.
// A score of kMasked has weight zero; rows of which nothing was seen yet stay at a sum of zero, never NaN.
//
// Next: kernels/include/attention_tile.cuh
#pragma once

#include "ptx.cuh"
#include "reduce.cuh"

namespace tessera {

constexpr float kMasked = -INFINITY;
constexpr double kLog2e = 1.4426950408889634;

struct OnlineRow {
  float top = kMasked;  // largest score so far
  float shift = 0.0f;   // what scaled scores are less: scaled `top`, or any finite number where nothing was seen
  float sum = 0.0f;     // of weights; where lanes share a row each sums its own columns, all in `top`'s terms

  // Takes the largest of further scores; returns the factor for everything that was weighted before, exactly one where
  // the largest stays: so scores that are all masked change no bit.
  __device__ __forceinline__ float raise(float further, float scale_log2e) {
    const float before = top;
    top = fmaxf(top, further);
    shift = top == kMasked ? 0.0f : top * scale_log2e;
    const float factor = before == top ? 1.0f : exp2_approx(fmaf(before, scale_log2e, -shift));
    sum = __fmul_rn(sum, factor);  // not joined with the next addition: kernels of all shapes round alike
    return factor;
  }

  // The weight of a score no larger than `top`; counts it.
  __device__ __forceinline__ float weigh(float score, float scale_log2e) {
    const float weight = exp2_approx(fmaf(score, scale_log2e, -shift));
    sum += weight;
    return weight;
  }

  // For sums of weighted values, `total` being all lanes' sums; a row that saw nothing gets zeros.
  __device__ __forceinline__ static float inverse(float total) { return total > 0.0f ? 1.0f / total : 0.0f; }
};

// Turns the scores of a fragment of 16 rows, `Columns` * 8 wide, into weights, and rescales its sums of values. The
// lanes of a quad share rows g (elements 0, 1) and g + 8 (2, 3), as mma_m16n8k16 lays them out. Row: OnlineRow, or what
// raises and weighs as it does.
template <typename Row, int Columns, int Sums>
__device__ __forceinline__ void online_softmax(float (&scores)[Columns][4], float (&sums)[Sums][4], Row (&rows)[2],
                                               float scale_log2e) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = 2 * half, second = first + 1;
    float top = kMasked;
#pragma unroll
    for (int column = 0; column < Columns; ++column)
      top = fmaxf(top, fmaxf(scores[column][first], scores[column][second]));
    const float factor = rows[half].raise(reduce_warp<Max, 4>(top), scale_log2e);
#pragma unroll
    for (int column = 0; column < Sums; ++column) {
      sums[column][first] *= factor;
      sums[column][second] *= factor;
    }
#pragma unroll
    for (int column = 0; column < Columns; ++column) {
      scores[column][first] = rows[half].weigh(scores[column][first], scale_log2e);
      scores[column][second] = rows[half].weigh(scores[column][second], scale_log2e);
    }
  }
}

}  // namespace tessera
