// The order in which attention over the paged cache adds up: it depends on the number of keys that a row sees, never on
// what else is in the batch.
//
// - Decoded rows: keys are cut at fixed places, each warp of a block takes every fourth piece of 16 (or 32) keys of a
//   split, and warps and then splits are added in order. A block that goes through all splits of its rows by itself
//   ("whole") makes the same additions as many blocks do: prefilled rows that are taken that way (`invariant`) get the
//   same bits as decoded ones. It reads keys and values for 16 rows at a time, so it is slower than the other way.
// - Prefill tiles go from the first key on in steps of one size: their rows get the same bits however a prompt is cut
//   into chunks of two tokens and more, but not those of decoded ones.
//
// What a row does not see changes nothing, exactly: its weight is zero, and the factor of what was summed before is
// one. That tensor cores round a row alike wherever it lies in a tile is taken for granted; the tests show it on a GPU.
//
// Next: kernels/include/paged_attention_split.cuh
#pragma once

#include "ptx.cuh"
#include "reduce.cuh"

namespace tessera {

constexpr float kUnseen = -INFINITY;

// Where keys are cut: a number of splits of `size` keys, as many of twice that, of four times that, and so on. So a
// context of 8k has 32 splits of 256 keys, and one of 256k has 161 in place of 1024, whose sums would need memory.
struct Splits {
  static constexpr int kOfOneSize = 32;
  int size;

  __host__ __device__ __forceinline__ int begin(int split) const {
    const int doublings = split / kOfOneSize;
    return (kOfOneSize * ((1 << doublings) - 1) + split % kOfOneSize * (1 << doublings)) * size;
  }

  // Of a row that sees so many keys; at least one.
  __host__ __device__ __forceinline__ int count(int keys) const {
    int before = 0, step = size;
    for (; keys > kOfOneSize * step; step *= 2) {
      keys -= kOfOneSize * step;
      before += kOfOneSize;
    }
    return before + (keys > 0 ? ceil_div(keys, step) : 1);
  }
};

// The softmax of a row whose scores come in pieces. Weights are relative to the largest scaled score so far.
struct RunningRow {
  float top = kUnseen;
  float sum = 0.0f;  // of weights; where lanes share a row each sums its own columns

  // What is summed relative to `before` times this is relative to `after`, which is not below; exactly one where both
  // are equal.
  __device__ __forceinline__ static float factor(float before, float after) {
    return before == after ? 1.0f : exp2_approx(before - after);
  }

  // Takes the largest of further scores (unscaled); returns the factor of what was summed before.
  __device__ __forceinline__ float raise(float score, float scale_log2e) {
    const float before = top;
    top = fmaxf(top, score * scale_log2e);
    const float factor_before = factor(before, top);
    sum = __fmul_rn(sum, factor_before);  // never joined to the next addition
    return factor_before;
  }

  // The weight of a score no larger than those that `raise` has taken; counts it.
  __device__ __forceinline__ float weigh(float score, float scale_log2e) {
    const float weight = exp2_approx(fmaf(score, scale_log2e, top == kUnseen ? 0.0f : -top));
    sum += weight;
    return weight;
  }
};

// N columns of a row's sums over some of its keys. Sums of further keys are added one after the other; multiplications
// and additions are spelled out, because two kernels must round alike.
template <int N>
struct PartialRow {
  float top = kUnseen, sum = 0.0f;
  float values[N] = {};

  __device__ __forceinline__ void add(float further_top, float further_sum, const float (&further)[N]) {
    const float raised = fmaxf(top, further_top);
    const float mine = RunningRow::factor(top, raised), theirs = RunningRow::factor(further_top, raised);
    top = raised;
    sum = fmaf(further_sum, theirs, sum * mine);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = fmaf(further[i], theirs, values[i] * mine);
  }

  // For the values; rows that saw nothing become zeros.
  __device__ __forceinline__ float inverse() const { return sum == 0.0f ? 0.0f : 1.0f / sum; }
};

}  // namespace tessera
