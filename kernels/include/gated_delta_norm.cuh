// What linear attention read, normed head by head and gated: x / rms(x) * weight * silu(gate).
//
// A head belongs to `Lanes` lanes, which keep it in registers: x and gate are read once, the result written once.
//
// Next: kernels/csrc/gated_delta.cu
#pragma once

#include "activation.cuh"
#include "reduce.cuh"

namespace tessera {

template <typename T>
struct GatedNormArguments {
  const T* x;          // (rows, heads, dim), contiguous
  const T* gate;       // (rows, heads * dim)
  int64_t gate_stride;
  const float* weight;  // (dim,)
  T* out;              // as x
  int64_t count;       // rows * heads
  int heads, dim;
  float eps;
};

template <typename T, int N, int Lanes, int PerLane>
__global__ void __launch_bounds__(128) gated_norm_kernel(const GatedNormArguments<T> a) {
  const int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / Lanes;
  const bool exists = index < a.count;
  const int64_t row = index / a.heads;
  const T* x = a.x + index * a.dim;
  const T* gate = a.gate + row * a.gate_stride + (index - row * a.heads) * a.dim;
  float values[PerLane][N] = {}, gates[PerLane][N] = {};
  float sum = 0.0f;
#pragma unroll
  for (int step = 0; step < PerLane; ++step) {
    const int at = (step * Lanes + int(threadIdx.x) % Lanes) * N;
    if (!exists || at >= a.dim) continue;
    load_float<N>(values[step], x + at);
    load_float<N>(gates[step], gate + at);
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fmaf(values[step][i], values[step][i], sum);
  }
  const float scale = rsqrtf(reduce_warp<Sum, Lanes>(sum) / float(a.dim) + a.eps);
#pragma unroll
  for (int step = 0; step < PerLane; ++step) {
    const int at = (step * Lanes + int(threadIdx.x) % Lanes) * N;
    if (!exists || at >= a.dim) continue;
    float results[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float by = gates[step][i];
      results[i] = values[step][i] * scale * a.weight[at + i] * (by * sigmoid<kExact<T>>(by));
    }
    store_float<N>(a.out + index * a.dim + at, results);
  }
}

}  // namespace tessera
