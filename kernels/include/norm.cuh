// Norms of rows, after the residual add that comes before them: r <- r + x + b, then RMSNorm(r) or LayerNorm(r).
//
// A row stays in registers between its two passes, so device memory is read once and written once. A row belongs to a
// warp where 32 lanes can hold it, else to a block.
//
// Next: kernels/csrc/norm.cu
#pragma once

#include "reduce.cuh"
#include "vector.cuh"

namespace tessera {

// One norm over (rows, hidden); strides are in elements, from row to row.
template <typename T, typename W>
struct NormArguments {
  const T* x;          // added to the residual, or, without one, what is normed; null: the residual alone
  int64_t x_stride;
  const T* x_bias;     // (x_bias_period,), added with x, repeated along the row; or null
  int x_bias_period;
  T* residual;         // changed in place; or null
  int64_t residual_stride;
  const W* weight;     // (hidden,)
  const W* bias;       // (hidden,); or null
  T* out;              // (rows, hidden), contiguous
  int64_t rows;
  int hidden;
  float eps;
};

constexpr int kNormWarps = 4;       // of a block whose warps have a row each
constexpr int kNormThreads = 1024;  // most of a block that has one row

template <typename T, typename W, int N, int PerThread, bool Centred, bool WarpRows>
__global__ void __launch_bounds__(WarpRows ? kNormWarps * kWarpSize : kNormThreads) norm_kernel(const NormArguments<T, W> a) {
  const int threads = WarpRows ? kWarpSize : int(blockDim.x);
  const int thread = WarpRows ? int(threadIdx.x) % kWarpSize : int(threadIdx.x);
  const int64_t row =
      WarpRows ? int64_t(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize : int64_t(blockIdx.x);
  if (WarpRows && row >= a.rows) return;  // a whole warp, and warps do not meet
  SHARED(float, scratch, kWarpSize);
  const auto total = [&](float value) {
    return WarpRows ? reduce_warp<Sum>(value) : reduce_block<Sum>(value, scratch);
  };

  const T* x = a.x ? a.x + row * a.x_stride : nullptr;
  T* residual = a.residual ? a.residual + row * a.residual_stride : nullptr;
  const auto column_of = [&](int step) { return int64_t(step * threads + thread) * N; };
  // All loads of a row are under way before the first is used; those behind its end take its last vector again.
  Packed<T, N> of_x[PerThread], of_residual[PerThread];
#pragma unroll
  for (int step = 0; step < PerThread; ++step) {
    const int64_t column = min(column_of(step), int64_t(a.hidden - N));
    if (x) of_x[step] = load_packed<N>(x + column);
    if (residual) of_residual[step] = load_packed<N>(residual + column);
  }
  float values[PerThread][N];
  float sum = 0.0f;
#pragma unroll
  for (int step = 0; step < PerThread; ++step) {
    const int64_t column = column_of(step);
#pragma unroll
    for (int i = 0; i < N; ++i) values[step][i] = 0.0f;
    if (column >= a.hidden) continue;
    if (x) unpack(values[step], of_x[step]);
    if (x && a.x_bias) {
      float added[N];
      load_float<N>(added, a.x_bias + int(column) % a.x_bias_period);
#pragma unroll
      for (int i = 0; i < N; ++i) values[step][i] += added[i];
    }
    if (residual) {
      float before[N];
      unpack(before, of_residual[step]);
      // The norm is of what storage holds, as when both steps stand alone.
#pragma unroll
      for (int i = 0; i < N; ++i) values[step][i] = rounded<T>(before[i] + values[step][i]);
      if (x) store_float<N>(residual + column, values[step]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum += Centred ? values[step][i] : values[step][i] * values[step][i];
  }
  float mean = 0.0f;
  if (Centred) {
    mean = total(sum) / float(a.hidden);
    sum = 0.0f;
#pragma unroll
    for (int step = 0; step < PerThread; ++step) {
      if (column_of(step) >= a.hidden) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) sum += (values[step][i] - mean) * (values[step][i] - mean);
    }
  }
  const float scale = rsqrtf(total(sum) / float(a.hidden) + a.eps);
  T* out = a.out + row * int64_t(a.hidden);
#pragma unroll
  for (int step = 0; step < PerThread; ++step) {
    const int64_t column = column_of(step);
    if (column >= a.hidden) continue;
    float weight[N], bias[N], normed[N];
    load_float<N>(weight, a.weight + column);
#pragma unroll
    for (int i = 0; i < N; ++i) bias[i] = 0.0f;
    if (a.bias) load_float<N>(bias, a.bias + column);
#pragma unroll
    for (int i = 0; i < N; ++i) normed[i] = (values[step][i] - mean) * scale * weight[i] + bias[i];
    store_float<N>(out + column, normed);
  }
}

}  // namespace tessera
