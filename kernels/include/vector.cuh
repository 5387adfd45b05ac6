// Elements in vectors of up to 16 bytes, the widest access of a thread, and their conversion from and to fp32.
//
// Next: kernels/include/reduce.cuh
#pragma once

#include <type_traits>

#include "platform.cuh"

namespace tessera {

constexpr int kVectorBytes = 16;

template <typename T>
constexpr int kVectorLength = kVectorBytes / int(sizeof(T));

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(fp16 x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}

// The value as storage of type T holds it.
template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// Emulated, ends the launch where a GPU's access of N elements at once would fault.
template <int N, typename T>
__device__ __forceinline__ void check_alignment([[maybe_unused]] const T* at) {
#ifndef __CUDACC__
  simt::check_alignment(at, sizeof(T) * N);
#endif
}

// N elements from an address that is a multiple of their size in bytes.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
  check_alignment<N>(from);
  return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <int N, typename T>
__device__ __forceinline__ void load_float(float (&to)[N], const T* from) {
  const Vector<T, N> packed = load<N>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(packed.at[i]);
}

// One fp32 value, or two of which the first comes first, as a word of T.
__device__ __forceinline__ uint32_t pack_word(const float* from, float) { return __float_as_uint(from[0]); }
__device__ __forceinline__ uint32_t pack_word(const float* from, bf16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(from[0], from[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_word(const float* from, fp16) {
  const __half2 pair = __floats2half2_rn(from[0], from[1]);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// In words of built-in vectors: the compiler may take a struct apart and store its elements one by one. For the same
// reason the address should come of 64-bit arithmetic.
template <int N, typename T>
__device__ __forceinline__ void store_float(T* to, const float (&from)[N]) {
  check_alignment<N>(to);
  constexpr int kEach = 4 / int(sizeof(T));
  if constexpr (N % kEach || N == 1) {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = from_float<T>(from[i]);
  } else if constexpr (N == kEach) {
    *reinterpret_cast<uint32_t*>(to) = pack_word(from, T());
  } else if constexpr (N == 2 * kEach) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack_word(from, T()), pack_word(from + kEach, T()));
  } else {
    static_assert(N % (4 * kEach) == 0, "a vector has 4 or 8 bytes or a multiple of 16");
#pragma unroll
    for (int i = 0; i < N; i += 4 * kEach)
      *reinterpret_cast<uint4*>(to + i) =
          make_uint4(pack_word(from + i, T()), pack_word(from + i + kEach, T()), pack_word(from + i + 2 * kEach, T()),
                     pack_word(from + i + 3 * kEach, T()));
  }
}

// N elements as the words that hold them, for loads that are to be under way together: a Vector of 16-bit elements is
// taken apart where it was loaded, which waits for it there.
template <typename T, int N>
struct alignas(sizeof(T) * N) Packed {
  using Word = std::conditional_t<sizeof(T) * N % 4 == 0, uint32_t, uint16_t>;
  Word words[sizeof(T) * N / sizeof(Word)];
};

template <int N, typename T>
__device__ __forceinline__ Packed<T, N> load_packed(const T* from) {
  check_alignment<N>(from);
  return *reinterpret_cast<const Packed<T, N>*>(from);
}

template <int N, typename T>
__device__ __forceinline__ void store_packed(T* to, const Packed<T, N>& from) {
  check_alignment<N>(to);
  *reinterpret_cast<Packed<T, N>*>(to) = from;
}

__device__ __forceinline__ void unpack_word(float* to, uint32_t word, float) { to[0] = __uint_as_float(word); }
__device__ __forceinline__ void unpack_word(float* to, uint32_t word, bf16) {
  to[0] = __uint_as_float(word << 16);
  to[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void unpack_word(float* to, uint32_t word, fp16) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  to[0] = pair.x, to[1] = pair.y;
}
template <typename T>
__device__ __forceinline__ void unpack_word(float* to, uint16_t word, T) {
  to[0] = to_float(*reinterpret_cast<const T*>(&word));
}

template <typename T, int N>
__device__ __forceinline__ void unpack(float (&to)[N], const Packed<T, N>& packed) {
  constexpr int kWords = int(sizeof(packed.words) / sizeof(packed.words[0]));
#pragma unroll
  for (int i = 0; i < kWords; ++i) unpack_word(to + i * (N / kWords), packed.words[i], T());
}

}  // namespace tessera
