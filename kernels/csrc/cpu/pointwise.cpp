// Row-wise ops in fp32: norms, alone and after a residual add, and the norm and rotation of query and key heads.
//
// Plain loops that the compiler vectorises. Few rows are done by the calling thread: waking the others costs more.
//
// Reference: tessera_kernels/reference.py
// Next: kernels/tessera_kernels/cpu.py

#include <omp.h>

#include <cmath>

#include "vec.h"

namespace {

constexpr long kAlone = 16384;  // floats up to which one thread does it all

int team(long floats, int threads) { return floats <= kAlone ? 1 : threads; }

float square_sum(const float* x, long count) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

void add_to(float* residual, const float* x, long count) {
#pragma omp simd
  for (long i = 0; i < count; ++i) residual[i] += x[i];
}

}  // namespace

// out = residual / rms(residual) * weight, after residual += x where x is not null. All (rows, hidden) but weight.
TESSERA_EXPORT void tessera_rms_norm(const float* x, float* residual, const float* weight, float* out, long rows,
                                     long hidden, float eps, int threads) {
#pragma omp parallel for num_threads(team(rows* hidden, threads)) schedule(static)
  for (long row = 0; row < rows; ++row) {
    float *from = residual + row * hidden, *to = out + row * hidden;
    if (x) add_to(from, x + row * hidden, hidden);
    const float factor = 1.0f / std::sqrt(square_sum(from, hidden) / hidden + eps);
#pragma omp simd
    for (long i = 0; i < hidden; ++i) to[i] = from[i] * factor * weight[i];
  }
}

// out = (residual - mean) / std * weight + bias, after residual += x where x is not null.
TESSERA_EXPORT void tessera_layer_norm(const float* x, float* residual, const float* weight, const float* bias,
                                       float* out, long rows, long hidden, float eps, int threads) {
#pragma omp parallel for num_threads(team(rows* hidden, threads)) schedule(static)
  for (long row = 0; row < rows; ++row) {
    float *from = residual + row * hidden, *to = out + row * hidden;
    if (x) add_to(from, x + row * hidden, hidden);
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < hidden; ++i) sum += from[i];
    const float mean = sum / hidden;
    float variance = 0;
#pragma omp simd reduction(+ : variance)
    for (long i = 0; i < hidden; ++i) variance += (from[i] - mean) * (from[i] - mean);
    const float factor = 1.0f / std::sqrt(variance / hidden + eps);
#pragma omp simd
    for (long i = 0; i < hidden; ++i) to[i] = (from[i] - mean) * factor * weight[i] + bias[i];
  }
}

// Norms (where a weight is given) and rotates, in place, the first q_heads + k_heads heads of each row.
//
// qkv: (rows, stride). cos, sin: (rows, half); the first 2 * half elements of a head turn, in half-split pairs.
TESSERA_EXPORT void tessera_qk_norm_rope(float* qkv, long stride, const float* q_weight, const float* k_weight,
                                         float eps, const float* cos, const float* sin, long half, long rows,
                                         long q_heads, long k_heads, long head_dim, int threads) {
#pragma omp parallel for num_threads(team(rows * (q_heads + k_heads) * head_dim, threads)) schedule(static)
  for (long row = 0; row < rows; ++row) {
    const float *c = cos + row * half, *s = sin + row * half;
    for (long head = 0; head < q_heads + k_heads; ++head) {
      float* x = qkv + row * stride + head * head_dim;
      const float* weight = head < q_heads ? q_weight : k_weight;
      if (weight) {
        const float factor = 1.0f / std::sqrt(square_sum(x, head_dim) / head_dim + eps);
#pragma omp simd
        for (long i = 0; i < head_dim; ++i) x[i] *= factor * weight[i];
      }
      float* y = x + half;
#pragma omp simd
      for (long i = 0; i < half; ++i) {
        const float a = x[i], b = y[i];
        x[i] = a * c[i] - b * s[i];
        y[i] = b * c[i] + a * s[i];
      }
    }
  }
}

// Number of the C interface; tessera_kernels/library.py loads no other.
TESSERA_EXPORT int tessera_interface() { return 3; }

// Floats of a vector: head sizes of the attention ops are multiples of it.
TESSERA_EXPORT int tessera_lanes() { return tessera::kLanes; }
