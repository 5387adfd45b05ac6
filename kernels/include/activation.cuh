// Activations of feed-forward layers: bias and GELU in place, SwiGLU of gate and up side by side.
//
// bias_gelu reads and writes every element once; swiglu reads two for each that it writes. A thread keeps its columns
// for some rows, whose loads are under way together, so a bias is read once for them.
//
// Next: kernels/csrc/activation.cu
#pragma once

#include "ptx.cuh"
#include "vector.cuh"

namespace tessera {

constexpr int kActivationRows = 4;  // of a thread

// Storage of 16 bits does not see the last digits that faster instructions and shorter formulas lose.
template <typename T>
constexpr bool kExact = std::is_same_v<T, float>;

constexpr float kLog2E = 1.4426950408889634f;

// 1 / (1 + e^-x)
template <bool Exact>
__device__ __forceinline__ float sigmoid(float x) {
  return Exact ? 1.0f / (1.0f + expf(-x)) : reciprocal_approx(1.0f + exp2_approx(-kLog2E * x));
}

// 0.5 x (1 + tanh(u)) is x sigmoid(2u), which keeps its digits where tanh is near -1.
template <bool Exact>
__device__ __forceinline__ float gelu_tanh(float x) {
  constexpr float kFirst = 1.5957691216057308f, kThird = 0.044715f * kFirst;  // 2 sqrt(2 / pi)
  return x * sigmoid<Exact>(x * (kFirst + kThird * (x * x)));
}

// x Phi(x). For storage of 16 bits: max(x, 0) - |x| Q(|x|), Q the tail of the normal distribution, which keeps its
// digits on either side. Source: Abramowitz and Stegun, formula 7.1.26, erf(x) to within 1.5e-7.
template <bool Exact>
__device__ __forceinline__ float gelu_erf(float x) {
  if (Exact) return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
  constexpr float kStep = 0.3275911f * 0.7071067811865476f;
  const float size = fabsf(x), t = reciprocal_approx(1.0f + kStep * size);
  float series = -0.7265760135f + t * 0.5307027145f;
  series = 0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * series));
  return fmaxf(x, 0.0f) - size * (t * series) * exp2_approx(-0.5f * kLog2E * (x * x));
}

// Where a thread's work lies: columns [column, column + N) of rows [row, row + kActivationRows).
//
// A group of rows takes `column_blocks` neighbouring blocks, whose threads share out the columns evenly.
template <int N>
__device__ __forceinline__ void activation_place(int column_blocks, int64_t& row, int& column) {
  row = int64_t(blockIdx.x / unsigned(column_blocks)) * kActivationRows;
  column = int(blockIdx.x % unsigned(column_blocks) * blockDim.x + threadIdx.x) * N;
}

// The row, or the last one: a load that depends on no condition waits for no other.
__device__ __forceinline__ int64_t clamped(int64_t row, int64_t rows) { return row < rows ? row : rows - 1; }

// x (rows, width), `stride` elements from row to row <- gelu(x + bias); bias (width,) or null.
template <typename T, int N, bool Tanh>
__global__ void bias_gelu_kernel(T* x, int64_t stride, const T* bias, int64_t rows, int width, int column_blocks) {
  int64_t row;
  int column;
  activation_place<N>(column_blocks, row, column);
  if (column >= width) return;
  Packed<T, N> loaded[kActivationRows];
#pragma unroll
  for (int step = 0; step < kActivationRows; ++step)
    loaded[step] = load_packed<N>(x + clamped(row + step, rows) * stride + column);
  float added[N], values[N];
#pragma unroll
  for (int i = 0; i < N; ++i) added[i] = 0.0f;
  if (bias) load_float<N>(added, bias + column);
#pragma unroll
  for (int step = 0; step < kActivationRows; ++step) {
    unpack(values, loaded[step]);
#pragma unroll
    for (int i = 0; i < N; ++i)
      values[i] = Tanh ? gelu_tanh<kExact<T>>(values[i] + added[i]) : gelu_erf<kExact<T>>(values[i] + added[i]);
    if (row + step < rows) store_float<N>(x + (row + step) * stride + column, values);
  }
}

// gate_up (rows, 2 * inner), `stride` elements from row to row -> out (rows, inner), contiguous: silu(gate) * up.
template <typename T, int N>
__global__ void swiglu_kernel(const T* gate_up, int64_t stride, T* out, int64_t rows, int inner, int column_blocks) {
  int64_t row;
  int column;
  activation_place<N>(column_blocks, row, column);
  if (column >= inner) return;
  Packed<T, N> gates[kActivationRows], ups[kActivationRows];
#pragma unroll
  for (int step = 0; step < kActivationRows; ++step) {
    const T* from = gate_up + clamped(row + step, rows) * stride + column;
    gates[step] = load_packed<N>(from);
    ups[step] = load_packed<N>(from + inner);
  }
#pragma unroll
  for (int step = 0; step < kActivationRows; ++step) {
    float gate[N], up[N];
    unpack(gate, gates[step]);
    unpack(up, ups[step]);
#pragma unroll
    for (int i = 0; i < N; ++i) gate[i] *= sigmoid<kExact<T>>(gate[i]) * up[i];
    if (row + step < rows) store_float<N>(out + (row + step) * inner + column, gate);
  }
}

}  // namespace tessera
