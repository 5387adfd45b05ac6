// Instructions that C++ has no name for: tensor-core products, their fragments, asynchronous copies. sm_80 and later.
//
// Source: PTX ISA 9.0, mma.sync.m16n8k16 and m16n8k8, ldmatrix, cp.async.
//
// Next: kernels/emulator/ptx.h
#pragma once

#include <type_traits>

#include "platform.cuh"
#ifndef __CUDACC__
#include "ptx.h"
#endif

namespace tessera {

// d (16 x 8, fp32) += a (16 x 16) b (16 x 8); T is bf16 or fp16. Lane l holds, with g = l / 4 and m = l % 4:
// - a: rows g (registers 0, 2) and g + 8 (1, 3), columns 2m, 2m + 1 (0, 1) and those + 8 (2, 3);
// - b: column g, rows 2m, 2m + 1 (register 0) and those + 8 (1);
// - d: rows g (0, 1) and g + 8 (2, 3), columns 2m and 2m + 1.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  emulated::mma_m16n8k16<T>(d, a, b);
#endif
}

// d (16 x 8, fp32) += a (16 x 8) b (8 x 8), of fp32 numbers whose last 13 bits are not looked at. Lane l holds:
// - a: rows g (registers 0, 2) and g + 8 (1, 3), columns m (0, 1) and m + 4 (2, 3);
// - b: column g, rows m (register 0) and m + 4 (1);
// - d: as above.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulated::mma_m16n8k8_tf32(d, a, b);
#endif
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l brings the address (a multiple of 16 bytes) of row
// l % 8 of matrix l / 8, and gets of each matrix row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
#else
  emulated::ldmatrix<4, false>(out, row);
#endif
}

// As ldmatrix_x4, each matrix transposed: lane l gets column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* row) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
#else
  emulated::ldmatrix<4, true>(out, row);
#endif
}

// Starts copying 16 bytes from global to shared memory, or, where `valid` is false, filling them with zeros; `from` is
// not read then. Both addresses are multiples of 16.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  simt::copy_async({to, from, valid ? 16 : 0, valid ? 0 : 16});
#endif
}

// Closes the group of copies started since the last one.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::commit_copies();
#endif
}

// Waits until at most `Pending` groups of this thread are under way; other threads see the data after a barrier.
template <int Pending>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  simt::wait_copies(Pending);
#endif
}

// 2^x to within two units in the last place; results below the normal numbers are zero.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return std::exp2(x);
#endif
}

// 1 / x to within one unit in the last place; 0 for infinity.
__device__ __forceinline__ float reciprocal_approx(float x) {
#ifdef __CUDACC__
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return 1.0f / x;
#endif
}

// Two fp32 values as a pair of T, the first in the low half: what fragments are made of.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<bf16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack_pair<fp16>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace tessera
