// Rotation of heads by half-split pairs; of the language model's with the norm before it and the write into the paged
// cache behind it, so that queries, keys and values are read once and written once.
//
// A thread takes pieces of a head in pairs, N elements and those that turn with them: no element is read twice. Between
// norm and rotation nothing is rounded. The tables are small beside the heads that share them.
//
// Next: kernels/csrc/rotary.cu
#pragma once

#include "reduce.cuh"
#include "vector.cuh"

namespace tessera {

constexpr int kMaxHeadThreads = 512;

// Two pieces of N columns of a head, which turn by columns [table, table + N) of the tables or are left as they are.
struct Piece {
  int first, second;
  int table;  // -1: does not turn
};

// Piece `index` of a head: first those that turn, then neighbours of what is left.
template <int N>
__device__ __forceinline__ Piece piece_of(int index, int half) {
  const int column = index * N;
  if (column < half) return {column, half + column, column};
  const int rest = 2 * column;
  return {rest, rest + N, -1};
}

// Pieces of a head of `width` columns; half and width are multiples of N.
template <int N>
__host__ __device__ constexpr int count_pieces(int half, int width) {
  return half / N + ceil_div(width - 2 * half, 2 * N);
}

// Cosines and sines of a piece.
template <int N>
struct Angles {
  float cos[N], sin[N];

  // cosines, sines: (half,), of the token.
  __device__ void load(const float* cosines, const float* sines, const Piece& piece) {
    if (piece.table < 0) return;
    load_float<N>(cos, cosines + piece.table);
    load_float<N>(sin, sines + piece.table);
  }

  // Turns the pairs (first[i], second[i]), if the piece turns.
  __device__ void rotate(float (&first)[N], float (&second)[N], const Piece& piece) const {
    if (piece.table < 0) return;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float a = first[i], b = second[i];
      first[i] = a * cos[i] - b * sin[i];
      second[i] = b * cos[i] + a * sin[i];
    }
  }
};

// Where keys and values go: caches (blocks, kv_heads, block_size, head_dim).
template <typename T>
struct PagedCache {
  T *key, *value;
  const int64_t* slots;  // (rows,), block * block_size + offset; negative: nowhere. Null: there is no cache
  int block_size;

  __device__ int64_t offset(int64_t slot, int head, int kv_heads, int head_dim) const {
    const unsigned block = unsigned(slot) / unsigned(block_size), place = unsigned(slot) % unsigned(block_size);
    return ((int64_t(block) * kv_heads + head) * block_size + place) * head_dim;
  }
};

template <typename T, typename W>
struct HeadsArguments {
  T* qkv;          // (rows, (heads + 2 * kv_heads) * head_dim) with `stride` elements from row to row
  int64_t stride;
  const W *q_weight, *k_weight;  // (head_dim,); null: no norm
  const float *cos, *sin;        // (rows, tables, half)
  int64_t rows;
  int heads, kv_heads, head_dim, half;
  int tables;  // 1, or one for each KV head, which its queries share
  float eps, inverse_dim;  // 1 / head_dim
  PagedCache<T> cache;     // with it keys and values go there, else keys stay in place
};

// What a thread holds of a head: a pair of pieces, and what the norm multiplies them with.
template <typename T, typename W, int N>
struct HeldPiece {
  bool inside;
  Packed<T, N> first, second;
  Packed<W, N> first_weight, second_weight;

  // What a head does not have is loaded from its beginning, and counts for nothing.
  __device__ void load(const T* from, const W* weight, const Piece& piece, int head_dim, bool is_inside) {
    inside = is_inside;
    const int second_column = piece.second < head_dim ? piece.second : 0;
    first = load_packed<N>(from + piece.first);
    second = load_packed<N>(from + second_column);
    if (!weight) return;
    first_weight = load_packed<N>(weight + piece.first);
    second_weight = load_packed<N>(weight + second_column);
  }

  __device__ float square_sum(const Piece& piece, int head_dim) const {
    float low[N], high[N], sum = 0.0f, second_sum = 0.0f;
    unpack(low, first);
    unpack(high, second);
#pragma unroll
    for (int i = 0; i < N; ++i) sum += low[i] * low[i], second_sum += high[i] * high[i];
    return inside ? sum + (piece.second < head_dim ? second_sum : 0.0f) : 0.0f;
  }

  // angles: of what turns, which values do not.
  __device__ void finish(T* to, const Piece& piece, int head_dim, const Angles<N>& angles, bool turns, bool weighted,
                         float scale) const {
    if (!inside) return;
    float low[N], high[N];
    unpack(low, first);
    unpack(high, second);
    if (weighted) {
      float low_weight[N], high_weight[N];
      unpack(low_weight, first_weight);
      unpack(high_weight, second_weight);
#pragma unroll
      for (int i = 0; i < N; ++i) low[i] *= scale * low_weight[i], high[i] *= scale * high_weight[i];
    }
    if (turns) angles.rotate(low, high, piece);
    store_float<N>(to + piece.first, low);
    if (piece.second < head_dim) store_float<N>(to + piece.second, high);
  }
};

// 1 / rms of a head; all lanes of a warp come here together, whichever heads they have.
template <typename T, typename W, int N, int PerThread>
__device__ __forceinline__ float inverse_rms(const HeldPiece<T, W, N> (&held)[PerThread],
                                             const Piece (&pieces)[PerThread], const HeadsArguments<T, W>& a,
                                             int lanes_log) {
  float sum = 0.0f;
#pragma unroll
  for (int step = 0; step < PerThread; ++step) sum += held[step].square_sum(pieces[step], a.head_dim);
  for (int log = lanes_log - 1; log >= 0; --log) sum += __shfl_xor_sync(kFullWarp, sum, 1 << log);
  return rsqrtf(sum * a.inverse_dim + a.eps);
}

// A block has a row. 2^lanes_log neighbouring lanes have a head at a time, each up to PerThread pairs of its pieces.
template <typename T, typename W, int N, int PerThread>
__global__ void __launch_bounds__(kMaxHeadThreads) heads_kernel(const HeadsArguments<T, W> a, int lanes_log) {
  const int64_t row = blockIdx.x;
  const int lane = int(threadIdx.x) & ((1 << lanes_log) - 1), count = count_pieces<N>(a.half, a.head_dim);
  const int at_once = int(blockDim.x) >> lanes_log, all_heads = a.heads + (a.cache.slots ? 2 : 1) * a.kv_heads;
  const int64_t slot = a.cache.slots ? a.cache.slots[row] : 0;
  Piece pieces[PerThread];
  Angles<N> angles[PerThread];
#pragma unroll
  for (int step = 0; step < PerThread; ++step) {
    const int index = (step << lanes_log) + lane;
    pieces[step] = piece_of<N>(index < count ? index : 0, a.half);
    if (a.tables == 1) angles[step].load(a.cos + row * a.half, a.sin + row * a.half, pieces[step]);
  }
  // All threads take every turn, for the sums of the warp's other heads.
  for (int head = int(threadIdx.x) >> lanes_log, turn = 0; turn < all_heads; turn += at_once, head += at_once) {
    const bool exists = head < all_heads, is_query = head < a.heads, is_value = head >= a.heads + a.kv_heads;
    const int kv_head = head - a.heads - (is_value ? a.kv_heads : 0);
    T* at = a.qkv + row * a.stride + (exists ? head : 0) * a.head_dim;
    const W* weight = is_value ? nullptr : is_query ? a.q_weight : a.k_weight;
    HeldPiece<T, W, N> held[PerThread];
#pragma unroll
    for (int step = 0; step < PerThread; ++step) {
      held[step].load(at, weight, pieces[step], a.head_dim, exists && (step << lanes_log) + lane < count);
      if (a.tables == 1 || is_value || !exists) continue;
      const int64_t table = (row * a.tables + (is_query ? head / (a.heads / a.kv_heads) : kv_head)) * a.half;
      angles[step].load(a.cos + table, a.sin + table, pieces[step]);
    }
    const float scale = a.q_weight || a.k_weight ? inverse_rms(held, pieces, a, lanes_log) : 1.0f;
    if (a.cache.slots && !is_query) {
      if (slot < 0) continue;
      at = (is_value ? a.cache.value : a.cache.key) + a.cache.offset(slot, kv_head, a.kv_heads, a.head_dim);
    }
#pragma unroll
    for (int step = 0; step < PerThread; ++step)
      held[step].finish(at, pieces[step], a.head_dim, angles[step], !is_value, weight != nullptr, scale);
  }
}

// Keys and values (rows, kv_heads, head_dim), with their own steps from row to row and head to head; a block for a row.
template <typename T>
struct StoreArguments {
  const T *key, *value;
  int64_t key_stride, value_stride, key_head_stride, value_head_stride;
  int kv_heads, head_dim;
  PagedCache<T> cache;
};

template <typename T, int N>
__global__ void store_kernel(const StoreArguments<T> a) {
  const int64_t row = blockIdx.x, slot = a.cache.slots[row];
  if (slot < 0) return;
  for (int item = int(threadIdx.x) * N; item < a.kv_heads * a.head_dim; item += int(blockDim.x) * N) {
    const int head = item / a.head_dim, column = item % a.head_dim;
    const int64_t to = a.cache.offset(slot, head, a.kv_heads, a.head_dim) + column;
    const auto key = load_packed<N>(a.key + row * a.key_stride + head * a.key_head_stride + column);
    const auto value = load_packed<N>(a.value + row * a.value_stride + head * a.value_head_stride + column);
    store_packed<N>(a.cache.key + to, key);
    store_packed<N>(a.cache.value + to, value);
  }
}

// cos, sin (rows, half) of positions[axes[i]][row] * inv_freq[i]; positions: (axes, rows), `stride` from axis to axis.
template <int N>
__global__ void rotary_table_kernel(const int64_t* positions, int64_t stride, const float* inv_freq,
                                    const int64_t* axes, float* cos, float* sin, int64_t rows, int half) {
  const unsigned item = blockIdx.x * blockDim.x + threadIdx.x, per_row = unsigned(half / N);
  const int64_t row = item / per_row;
  if (row >= rows) return;
  const int column = int(item % per_row) * N;
  float cosines[N], sines[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float angle = float(positions[axes[column + i] * stride + row]) * inv_freq[column + i];
    sincosf(angle, &sines[i], &cosines[i]);
  }
  store_float<N>(cos + row * half + column, cosines);
  store_float<N>(sin + row * half + column, sines);
}

}  // namespace tessera
