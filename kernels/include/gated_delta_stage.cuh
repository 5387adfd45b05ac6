// What the stripes of a head share, a run of tokens at a time: one warp brings it into shared memory while the others
// work on the run before. Per token and head: query and key of unit length (the query times key_dim^-0.5),
// their product, decay e^g with g = -rate * softplus(a + bias), and beta = sigmoid(b), rounded as the gates' type is.
//
// Next: kernels/include/gated_delta_chunk.cuh
#pragma once

#include <climits>

#include "activation.cuh"
#include "gated_delta_sequences.cuh"
#include "reduce.cuh"

namespace tessera {

constexpr int kDeltaGroups = 16;  // of rows, whose sums meet in a tree
constexpr int kDeltaRows = 4 * kDeltaGroups;  // of the state a step; row r is in group r / 4 % 16
constexpr int kDeltaWarps = 4;  // with a stripe each

template <typename T>
struct GatedDeltaArguments {
  const T* qkv;  // (rows, 2 * key_heads * key_dim + heads * value_dim): queries, keys, values
  int64_t qkv_stride;
  const T* gates;  // (rows, 2 * heads): update gates b, decay gates a
  int64_t gates_stride;
  const float* rate;  // (heads,); bias likewise
  const float* bias;
  float* states;  // (slots, heads, key_dim, value_dim)
  T* out;         // (rows, heads, value_dim), contiguous
  StateSequences sequences;
  int key_heads, heads, key_dim, value_dim;
  int recurrent_length = INT_MAX;  // longer sequences are solved in chunks, by other kernels

  // Where a head's queries, keys and values begin in a row.
  __device__ int64_t queries(int head) const { return int64_t(head / (heads / key_heads)) * key_dim; }
  __device__ int64_t keys(int head) const { return int64_t(key_heads) * key_dim + queries(head); }
  __device__ int64_t values(int head) const { return int64_t(2) * key_heads * key_dim + int64_t(head) * value_dim; }
};

struct DeltaGate {
  float log_decay, beta;
};

template <typename T>
__device__ __forceinline__ DeltaGate delta_gate(const GatedDeltaArguments<T>& a, int64_t row, int head) {
  const T* gates = a.gates + row * a.gates_stride;
  const float update = to_float(gates[head]), decay = to_float(gates[a.heads + head]) + a.bias[head];
  const float softplus = decay > 20.0f ? decay : log1pf(expf(decay));
  return {-a.rate[head] * softplus, rounded<T>(sigmoid<true>(update))};
}

// What makes the length of a query or key one.
__device__ __forceinline__ float unit_scale(float square) { return rsqrtf(square + 1e-6f); }

struct alignas(16) DeltaGates {
  float decay, beta;
  float match;  // k.q
  float unused;
};

// Zeros for the rows of nobody, in the columns of this block.
template <typename T>
__device__ void clear_reads(const GatedDeltaArguments<T>& a, const Segment& part, int head, int column, int columns) {
  const int width = min(columns, a.value_dim - column);
  for (int64_t at = threadIdx.x; at < int64_t(part.length) * width; at += blockDim.x)
    a.out[((part.first + at / width) * a.heads + head) * a.value_dim + column + at % width] = from_float<T>(0.0f);
}

// `Vectors`: rows of keys fill their steps, and all vectors are aligned.
template <typename T, int Steps, int Quads, bool Vectors>
struct DeltaStage {
  // The warp that stages: one of its own, or, where blocks are many and tokens few, one of those with stripes.
  static constexpr int kWarp = Quads == 8 ? 0 : kDeltaWarps;
  static constexpr int kThreads = (Quads == 8 ? kDeltaWarps : kDeltaWarps + 1) * kWarpSize;
  static constexpr int kColumns = kDeltaWarps * 4 * Quads;         // of values, a block
  static constexpr int kRun = Quads == 8 ? 2 : Steps == 4 || sizeof(T) == 4 ? 4 : 8;  // tokens
  static constexpr int kRows = Steps * kDeltaRows;                 // key_dim, and zeros
  static constexpr int kPerLane = kRows / kWarpSize;
  static constexpr int kVector = kPerLane < kVectorLength<T> ? kPerLane : kVectorLength<T>;
  static constexpr int kValues = kColumns / kWarpSize;
  static constexpr int kTokenFloats = 2 * kRows + kColumns + int(sizeof(DeltaGates) / sizeof(float));
  static constexpr size_t kBytes = 2 * kRun * kTokenFloats * sizeof(float);

  const GatedDeltaArguments<T>& a;
  const Segment& part;
  const int head, column;

  __device__ DeltaStage(const GatedDeltaArguments<T>& arguments, const Segment& segment, int of_head, int first_column)
      : a(arguments), part(segment), head(of_head), column(first_column) {}

  // Of token `token` of the run that begins at `start`; runs take turns in two halves of the memory.
  __device__ float* keys(int start, int token) const {
    return dynamic_shared<float>() + (start / kRun % 2 * kRun + token) * kTokenFloats;
  }
  __device__ float* queries(int start, int token) const { return keys(start, token) + kRows; }
  __device__ float* values(int start, int token) const { return keys(start, token) + 2 * kRows; }
  __device__ DeltaGates* gates(int start, int token) const {
    return reinterpret_cast<DeltaGates*>(keys(start, token) + 2 * kRows + kColumns);
  }

  // A lane's neighbouring elements of a query or key.
  __device__ void load_part(float (&to)[kPerLane], const T* from) const {
    const int at = int(threadIdx.x) % kWarpSize * kPerLane;
    if constexpr (Vectors) {
#pragma unroll
      for (int i = 0; i < kPerLane; i += kVector) {
        float vector[kVector];
        load_float<kVector>(vector, from + at + i);
#pragma unroll
        for (int j = 0; j < kVector; ++j) to[i + j] = vector[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) to[i] = at + i < a.key_dim ? to_float(from[at + i]) : 0.0f;
    }
  }

  // All loads of a run are under way before the first is needed.
  __device__ void fill(int start) const {
    const int lane = int(threadIdx.x) % kWarpSize, tokens = min(kRun, part.length - start);
    float query[kRun][kPerLane], key[kRun][kPerLane], value[kRun][kValues];
#pragma unroll
    for (int token = 0; token < kRun; ++token) {
      // What is beyond the last token is read again from it, and not used.
      const T* row = a.qkv + (part.first + start + min(token, tokens - 1)) * a.qkv_stride;
      load_part(query[token], row + a.queries(head));
      load_part(key[token], row + a.keys(head));
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        const int of_head = column + i * kWarpSize + lane;
        value[token][i] = of_head < a.value_dim ? to_float(row[a.values(head) + of_head]) : 0.0f;
      }
    }
    if (lane < tokens) fill_gates(start, lane);
#pragma unroll
    for (int token = 0; token < kRun; ++token) {
      if (token >= tokens) break;
      fill_heads(start, token, query[token], key[token]);
#pragma unroll
      for (int i = 0; i < kValues; ++i) values(start, token)[i * kWarpSize + lane] = value[token][i];
    }
  }

  __device__ void fill_gates(int start, int token) const {
    const DeltaGate gate = delta_gate(a, part.first + start + token, head);
    gates(start, token)->beta = gate.beta;
    gates(start, token)->decay = expf(gate.log_decay);
  }

  __device__ void fill_heads(int start, int token, float (&query)[kPerLane], float (&key)[kPerLane]) const {
    const int lane = int(threadIdx.x) % kWarpSize;
    float query_square = 0.0f, key_square = 0.0f, match = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      query_square = fmaf(query[i], query[i], query_square);
      key_square = fmaf(key[i], key[i], key_square);
      match = fmaf(query[i], key[i], match);
    }
    const float by_query = unit_scale(reduce_warp<Sum>(query_square)) * rsqrtf(float(a.key_dim));
    const float by_key = unit_scale(reduce_warp<Sum>(key_square));
    match = reduce_warp<Sum>(match) * by_query * by_key;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      queries(start, token)[lane * kPerLane + i] = query[i] * by_query;
      keys(start, token)[lane * kPerLane + i] = key[i] * by_key;
    }
    if (lane == 0) gates(start, token)->match = match;
  }
};

}  // namespace tessera
