// What device code stands on: CUDA itself, or its stand-in on the CPU (kernels/emulator), chosen by the compiler.
//
// Device code includes this instead of CUDA's headers and keeps to these habits, which the emulator checks:
// - shared memory comes from SHARED or dynamic_shared, never from __shared__;
// - collectives take the whole warp (kFullWarp), and no thread leaves before a barrier that others reach;
// - blocks have whole warps.
//
// Next: kernels/include/vector.cuh
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Declares `T* name`, `count` elements that the block shares; the count is a constant.
#define SHARED(T, name, count)                         \
  __shared__ __align__(16) unsigned char name##_memory[sizeof(T) * (count)]; \
  T* name = reinterpret_cast<T*>(name##_memory)
#else
#include "simt.h"

#define SHARED(T, name, count)  \
  static const char name##_key = 0; \
  T* name = static_cast<T*>(simt::shared_array(&name##_key, sizeof(T) * (count)))
#endif

namespace tessera {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

using bf16 = __nv_bfloat16;
using fp16 = __half;

// The shared memory that a launch asked for.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char tessera_dynamic_memory[];
  return reinterpret_cast<T*>(tessera_dynamic_memory);
#else
  return static_cast<T*>(simt::dynamic_shared());
#endif
}

template <typename T>
__host__ __device__ constexpr T ceil_div(T count, T size) {
  return (count + size - 1) / size;
}

}  // namespace tessera
