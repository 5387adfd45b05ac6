// Vectors of floats in GCC's portable spelling, as wide as the target: 16 with AVX-512, else 8.
//
// The same sources are compiled once for each instruction set (kernels/build.py); the Python side picks the library
// that the processor can run. Weights are packed in panels of 16 rows whatever the vector's width.
//
// Next: kernels/csrc/cpu/tile.h

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#define TESSERA_VECTOR_BYTES 64
#else
#define TESSERA_VECTOR_BYTES 32
#endif

#define TESSERA_EXPORT extern "C" __attribute__((visibility("default")))

namespace tessera {

typedef float vfloat __attribute__((vector_size(TESSERA_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(TESSERA_VECTOR_BYTES)));

constexpr int kLanes = TESSERA_VECTOR_BYTES / 4;
constexpr int kPanel = 16;  // output rows of a packed panel

static inline vfloat load(const float* p) {
  vfloat v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

static inline void store(float* p, vfloat v) { std::memcpy(p, &v, sizeof(v)); }

// All lanes alike. (A sum with zero would do as well, but costs an addition: of -0 it makes +0.)
static inline vfloat splat(float x) {
#if defined(__AVX512F__)
  return vfloat{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#else
  return vfloat{x, x, x, x, x, x, x, x};
#endif
}

// Intrinsics, because compilers take the portable spelling of a selection apart, lane by lane.
#if defined(__AVX512F__)
static inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
static inline vfloat where_less(vfloat a, vfloat b, vfloat then, vfloat otherwise) {
  const __mmask16 less = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
  return (vfloat)_mm512_mask_blend_ps(less, (__m512)otherwise, (__m512)then);
}
#else
static inline vfloat vmax(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vfloat vmin(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vfloat where_less(vfloat a, vfloat b, vfloat then, vfloat otherwise) {
  const __m256 less = _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_LT_OQ);
  return (vfloat)_mm256_blendv_ps((__m256)otherwise, (__m256)then, less);
}
#endif

static inline float hsum(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}

// exp to about one unit in the last place: 2^n * exp(r), |r| <= ln 2 / 2, a polynomial of degree 6 for exp(r).
static inline vfloat vexp(vfloat x) {
  x = vmin(vmax(x, splat(-87.3f)), splat(88.3f));
  const vfloat shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the rounded exponent
  const vfloat n = shifted - 12582912.0f;
  vfloat r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vint scale = (__builtin_convertvector(n, vint) + 127) << 23;
  vfloat factor;
  std::memcpy(&factor, &scale, sizeof(factor));
  return p * factor;
}

static inline vfloat silu(vfloat x) { return x / (1.0f + vexp(-x)); }

// GELU's tanh formula: 0.5 x (1 + tanh u) = x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
static inline vfloat gelu_tanh(vfloat x) {
  const vfloat u = x * (1.0f + x * x * 0.044715f) * 0.7978845608f;
  return x / (1.0f + vexp(u * -2.0f));
}

}  // namespace tessera
