// The gated delta rule in chunks of 64 tokens, the part that no state is needed for: every chunk and head by itself.
//
// With G the sum of log decays from a chunk's first token on, k unit keys and q unit queries times key_dim^-0.5, what
// tokens add to the state answers d = v - e^G S^T k of the state before the chunk through a triangular system:
//   delta = (I + A)^-1 beta d,   A_ij = beta_i k_i.k_j e^(G_i - G_j), i > j
//   out = e^G S^T q + P delta,   P_ij = q_i.k_j e^(G_i - G_j), i >= j
//   S <- e^(G_last) S + sum of e^(G_last - G_j) k_j delta_j
// Here are (I + A)^-1 beta and P, and the factors of each token; gated_delta_walk.cuh does the rest, chunk by chunk.
// Exponents are never above zero. The inverse's entries are not above one, since every I - beta k k^T shortens.
//
// Products of keys and queries are of the rows as they lie, exact in 16 bits; lengths come in behind. G is summed in
// fp64 and kept in two fp32, since differences of sums as large as 64 |g| have lost digits. The system is solved in
// fp32, column by column.
//
// A chunk and head reads 32 KB of keys and queries (128 elements) and leaves 20 KB of triangles and 1 KB of factors.
//
// Source: Yang et al., "Gated Delta Networks" (arXiv 2412.06464), 3.3.
//
// Next: kernels/include/gated_delta_walk.cuh
#pragma once

#include "attention_tile.cuh"
#include "gated_delta_stage.cuh"

namespace tessera {

constexpr int kDeltaChunk = 64;  // tokens
// A chunk takes the blocks of one of these windows of rows: from its first row on, a sequence of 64 tokens or more has
// at least as many windows that begin in it as it has chunks, so that blocks are found without sums over sequences.
constexpr int kChunkWindow = kDeltaChunk / 2;

struct alignas(16) ChunkFactors {
  float answer;  // e^G / |k|: from what the old state answers to a key as it lies
  float read;    // e^G / |q|, likewise
  float keep;    // e^(G_last - G) / |k|: of the key as it lies in the new state
  float state;   // e^(G_last), the same for all tokens of a chunk
};

// By token: of a triangle, its row and as many columns as a chunk has; blocks of 16 above the diagonal are not used.
template <typename T>
struct DeltaChunkArguments {
  GatedDeltaArguments<T> rule;
  float* inverse;         // (heads, rows, 64)
  float* scores;          // (heads, rows, 64)
  ChunkFactors* factors;  // (heads, rows)

  __device__ int64_t place(int head, int64_t row) const { return int64_t(head) * rule.sequences.rows + row; }
};

template <typename T, int Dim>
struct DeltaChunk {
  static constexpr int kThreads = 128;
  static constexpr int kTile = kDeltaChunk * kTileStride<Dim>;  // elements
  static constexpr int kPitch = kDeltaChunk + 4;
  static constexpr size_t kTiles = 2 * kTile * sizeof(T);
  static constexpr size_t kBytes = kTiles + (kDeltaChunk * kPitch + 5 * kDeltaChunk) * sizeof(float);
  static_assert(kTiles >= kDeltaChunk * kDeltaChunk * sizeof(float), "the inverse takes the place of the tiles");

  const DeltaChunkArguments<T>& a;
  const int head, tokens;
  const int64_t row;  // of the first token
  T *keys, *queries;
  float* system;  // A, by column
  float *upper_log, *lower_log, *beta, *by_key, *by_query;

  __device__ DeltaChunk(const DeltaChunkArguments<T>& arguments, int of_head, int64_t first, int length)
      : a(arguments), head(of_head), tokens(length), row(first) {
    keys = dynamic_shared<T>();
    queries = keys + kTile;
    system = reinterpret_cast<float*>(queries + kTile);
    upper_log = system + kDeltaChunk * kPitch;
    lower_log = upper_log + kDeltaChunk;
    beta = lower_log + kDeltaChunk;
    by_key = beta + kDeltaChunk;
    by_query = by_key + kDeltaChunk;
  }

  __device__ void start_copies() const {
    const T* from = a.rule.qkv + row * a.rule.qkv_stride;
    const int stride = int(a.rule.qkv_stride), dim = a.rule.key_dim;
    copy_tile<T, Dim, kDeltaChunk, kThreads>(keys, from + a.rule.keys(head), stride, tokens, dim);
    copy_tile<T, Dim, kDeltaChunk, kThreads>(queries, from + a.rule.queries(head), stride, tokens, dim);
    commit_copies();
  }

  // A warp's work, two neighbouring tokens a lane. Tokens behind the last neither forget nor learn.
  __device__ void sum_gates() const {
    const int lane = int(threadIdx.x) % kWarpSize;
    double logs[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 2 * lane + i;
      DeltaGate gate{0.0f, 0.0f};
      if (token < tokens) gate = delta_gate(a.rule, row + token, head);
      beta[token] = gate.beta;
      logs[i] = gate.log_decay < -200.0f ? -200.0f : gate.log_decay;  // e^-200 is zero, and so many still add up
    }
    double until = logs[0] + logs[1];
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const double before = __shfl_up_sync(kFullWarp, until, distance);
      if (lane >= distance) until += before;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const double sum = i == 0 ? until - logs[1] : until;
      upper_log[2 * lane + i] = float(sum);
      lower_log[2 * lane + i] = float(sum - double(float(sum)));
    }
  }

  // e^(G_i - G_j), i >= j.
  __device__ float decay(int i, int j) const {
    return expf((upper_log[i] - upper_log[j]) + (lower_log[i] - lower_log[j]));
  }

  // A row of either tile a thread.
  __device__ void measure() const {
    const int token = int(threadIdx.x) % kDeltaChunk;
    const bool of_keys = int(threadIdx.x) < kDeltaChunk;
    const T* from = (of_keys ? keys : queries) + token * kTileStride<Dim>;
    float squares[4] = {};
#pragma unroll 4
    for (int at = 0; at < Dim; at += 8) {
      float values[8];
      load_float<8>(values, from + at);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares[i % 4] = fmaf(values[i], values[i], squares[i % 4]);
    }
    const float scale = unit_scale((squares[0] + squares[1]) + (squares[2] + squares[3]));
    if (of_keys)
      by_key[token] = scale;
    else
      by_query[token] = scale * rsqrtf(float(a.rule.key_dim));
  }

  // A and P, 16 rows a warp, in blocks of 16 columns up to the diagonal.
  __device__ void multiply() const {
    const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
    const T* key_rows = keys + warp * 16 * kTileStride<Dim> + down_first<Dim>(lane);
    const T* query_rows = queries + warp * 16 * kTileStride<Dim> + down_first<Dim>(lane);
    for (int block = 0; block <= warp; ++block) {
      const T* columns = keys + block * 16 * kTileStride<Dim> + across_first<Dim>(lane);
      float of_keys[2][4] = {}, of_queries[2][4] = {};
#pragma unroll
      for (int step = 0; step < Dim / 16; ++step) {
        uint32_t key[4], query[4], column[4];
        ldmatrix_x4(key, key_rows + step * 16);
        ldmatrix_x4(query, query_rows + step * 16);
        ldmatrix_x4(column, columns + step * 16);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t operand[2] = {column[2 * half], column[2 * half + 1]};
          mma_m16n8k16<T>(of_keys[half], key, operand);
          mma_m16n8k16<T>(of_queries[half], query, operand);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half)
        scale(warp * 16 + lane / 4, block * 16 + half * 8 + lane % 4 * 2, of_keys[half], of_queries[half]);
    }
  }

  // Of products that a lane has of two rows and two columns.
  __device__ void scale(int upper, int column, const float (&of_keys)[4], const float (&of_queries)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = upper + 8 * half;
      float scores[2] = {};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = column + e;
        if (i < j) continue;
        const float by = decay(i, j) * by_key[j];
        scores[e] = of_queries[2 * half + e] * (by_query[i] * by);
        system[j * kPitch + i] = of_keys[2 * half + e] * (beta[i] * by_key[i] * by);
      }
      if (i < tokens) store_float<2>(a.scores + a.place(head, row + i) * kDeltaChunk + column, scores);
    }
  }

  // A column of the inverse a thread, 16 rows at a time: their sums over the rows before, and then over each other.
  // What lies above the diagonal becomes zero by itself.
  __device__ void invert(float* solved) const {
    const int column = int(threadIdx.x), first = column / kWarpSize * kWarpSize;
    float* out = a.inverse + a.place(head, row) * kDeltaChunk + column;
#pragma unroll 1
    for (int begin = first; begin < kDeltaChunk; begin += 16) {
      float x[16];
#pragma unroll
      for (int r = 0; r < 16; ++r) x[r] = begin + r == column ? 1.0f : 0.0f;
#pragma unroll 2
      for (int k = first; k < begin; ++k) eliminate(x, k, begin, solved[k * kDeltaChunk + column], 0);
#pragma unroll
      for (int k = 0; k < 15; ++k) eliminate(x, begin + k, begin, x[k], k + 1);
#pragma unroll
      for (int r = 0; r < 16; ++r) {
        solved[(begin + r) * kDeltaChunk + column] = x[r];
        if (begin + r < tokens) out[(begin + r) * kDeltaChunk] = x[r] * beta[column];
      }
    }
  }

  // Takes what is known of row k out of rows begin + from and on.
  __device__ __forceinline__ void eliminate(float (&x)[16], int k, int begin, float known, int from) const {
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      if (4 * quad + 3 < from) continue;
      float factors[4];
      load_float<4>(factors, system + k * kPitch + begin + 4 * quad);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (4 * quad + i >= from) x[4 * quad + i] = fmaf(-factors[i], known, x[4 * quad + i]);
    }
  }

  __device__ void store_factors(int token) const {
    if (token >= tokens) return;
    const float total = expf(upper_log[token]);
    const float values[4] = {total * by_key[token], total * by_query[token],
                             decay(kDeltaChunk - 1, token) * by_key[token], expf(upper_log[kDeltaChunk - 1])};
    store_float<4>(&a.factors[a.place(head, row + token)].answer, values);
  }
};

// A block: one chunk, one head.
template <typename T, int Dim>
__global__ void __launch_bounds__(DeltaChunk<T, Dim>::kThreads) delta_chunk_kernel(const DeltaChunkArguments<T> a) {
  const int head = int(blockIdx.x) % a.rule.heads, window = int(blockIdx.x) / a.rule.heads;
  const StateSequences& sequences = a.rule.sequences;
  const Segment part = segment(sequences, find_segment(sequences, window * kChunkWindow));
  const int start = (window - ceil_div(part.first, kChunkWindow)) * kDeltaChunk;
  if (part.slot < 0 || part.length <= a.rule.recurrent_length || start >= part.length) return;

  const DeltaChunk<T, Dim> chunk(a, head, part.first + start, min(kDeltaChunk, part.length - start));
  chunk.start_copies();
  if (threadIdx.x < kWarpSize) chunk.sum_gates();
  wait_copies<0>();
  __syncthreads();
  chunk.measure();
  __syncthreads();
  chunk.multiply();
  __syncthreads();
  if (threadIdx.x < kDeltaChunk)
    chunk.invert(reinterpret_cast<float*>(chunk.keys));
  else
    chunk.store_factors(int(threadIdx.x) - kDeltaChunk);
}

}  // namespace tessera
