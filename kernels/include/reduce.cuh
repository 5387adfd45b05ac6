// Sums and maxima over a warp and over a block; every thread gets the result, always from the same order of additions.
//
// Next: kernels/include/norm.cuh
#pragma once

#include "platform.cuh"

namespace tessera {

struct Sum {
  static constexpr float kNeutral = 0.0f;
  __device__ static float of(float a, float b) { return a + b; }
};

struct Max {
  static constexpr float kNeutral = -3.402823466e+38f;
  __device__ static float of(float a, float b) { return fmaxf(a, b); }
};

// Over neighbouring groups of `Lanes` lanes, a power of two.
template <typename Op, int Lanes = kWarpSize>
__device__ __forceinline__ float reduce_warp(float value) {
#pragma unroll
  for (int distance = Lanes / 2; distance > 0; distance /= 2)
    value = Op::of(value, __shfl_xor_sync(kFullWarp, value, distance));
  return value;
}

// Over all threads of a one-dimensional block. `scratch`: one float a warp, free again after the call.
template <typename Op>
__device__ __forceinline__ float reduce_block(float value, float* scratch) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int warps = int(blockDim.x) / kWarpSize;
  value = reduce_warp<Op>(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = reduce_warp<Op>(lane < warps ? scratch[lane] : Op::kNeutral);
  __syncthreads();
  return value;
}

}  // namespace tessera
