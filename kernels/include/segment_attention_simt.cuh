// Attention inside segments without tensor cores: fp32 storage, and heads that do not come in multiples of 8 elements.
//
// A block takes Rows rows of one segment and one head against 32 keys at a time; keys, then values, share one buffer.
// Eight neighbouring lanes own four rows: a 4 x 4 piece of the scores, and of the output 4 rows by an eighth of the
// columns. Arithmetic is fp32 FMAs, bound by them; device memory is read as in segment_attention.cuh. As there, a row's
// result depends on its own segment alone.
//
// Next: kernels/csrc/segment_attention.cu
#pragma once

#include "segment_attention.cuh"

namespace tessera {

constexpr int kSimtKeys = 32;
constexpr int kSimtLanes = 8;  // that share rows
constexpr int kSimtPiece = 4;  // rows of a lane

// Enough rows to use what is read, few enough for 99 KB and for a thread's registers.
template <int Dim>
constexpr int kSimtRows = Dim <= 128 ? 64 : 32;

template <int Dim>
constexpr int kSimtThreads = kSimtRows<Dim> / kSimtPiece * kSimtLanes;

// Rows lie Dim + 4 floats apart: eight lanes that read a word each of eight rows use all banks.
template <int Dim>
constexpr int kSimtStride = Dim + 4;
constexpr int kSimtWeightStride = kSimtKeys + 4;

template <int Dim>
constexpr int kSimtSharedBytes =
    ((kSimtRows<Dim> + kSimtKeys) * kSimtStride<Dim> + kSimtRows<Dim> * kSimtWeightStride) * 4;

// Copies rows to shared memory as fp32; zeros from row `valid` and from column `dim` on.
template <typename T, int Dim, int Rows>
__device__ __forceinline__ void read_tile(float* tile, const T* from, int stride, int valid, int dim) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
#pragma unroll 4
  for (int row = warp; row < Rows; row += kSimtThreads<Dim> / kWarpSize) {
    const T* source = from + int64_t(row) * stride;
#pragma unroll
    for (int column = lane; column < Dim; column += kWarpSize)
      tile[row * kSimtStride<Dim> + column] = row < valid && column < dim ? to_float(source[column]) : 0.0f;
  }
}

// Scores of four rows with the keys lane, lane + 8, lane + 16 and lane + 24.
template <int Dim>
__device__ __forceinline__ void score_piece(float (&scores)[kSimtPiece][4], const float* queries, const float* keys) {
#pragma unroll
  for (int i = 0; i < kSimtPiece * 4; ++i) scores[i / 4][i % 4] = 0.0f;
#pragma unroll 2
  for (int column = 0; column < Dim; column += 4) {
    float query[kSimtPiece][4], key[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_float<4>(query[i], queries + i * kSimtStride<Dim> + column);
      load_float<4>(key[i], keys + i * kSimtLanes * kSimtStride<Dim> + column);
    }
#pragma unroll
    for (int i = 0; i < kSimtPiece * 4; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) scores[i / 4][i % 4] = fmaf(query[i / 4][k], key[i % 4][k], scores[i / 4][i % 4]);
    }
  }
}

// Adds weights (4 rows by 32 keys, in shared memory) times values; a lane's columns come in fours, 32 apart.
template <int Dim>
__device__ __forceinline__ void add_piece(float (&sums)[kSimtPiece][Dim / 8], const float* weights,
                                          const float* values) {
  [[maybe_unused]] constexpr int kTogether = Dim <= 128 ? 4 : 1;  // keys, as registers allow
#pragma unroll kTogether
  for (int key = 0; key < kSimtKeys; ++key) {
    float weight[kSimtPiece];
#pragma unroll
    for (int i = 0; i < kSimtPiece; ++i) weight[i] = weights[i * kSimtWeightStride + key];
#pragma unroll
    for (int group = 0; group < Dim / 32; ++group) {
      float value[4];
      load_float<4>(value, values + key * kSimtStride<Dim> + group * 32);
#pragma unroll
      for (int i = 0; i < kSimtPiece * 4; ++i)
        sums[i / 4][group * 4 + i % 4] = fmaf(weight[i / 4], value[i % 4], sums[i / 4][group * 4 + i % 4]);
    }
  }
}

// Turns scores of four rows into weights in shared memory, and rescales the rows' sums. `limit`: keys, from this tile's
// first, that the first of the rows sees; each further row sees `more` of them more, and none beyond `end`.
template <int Dim>
__device__ __forceinline__ void soften_piece(float (&sums)[kSimtPiece][Dim / 8], OnlineRow (&rows)[kSimtPiece],
                                             float (&scores)[kSimtPiece][4], float* weights, int limit, int more,
                                             int end, float scale_log2e) {
  const int member = int(threadIdx.x) % kSimtLanes;
#pragma unroll
  for (int i = 0; i < kSimtPiece; ++i) {
    float top = kMasked;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (member + j * kSimtLanes >= min(limit + i * more, end)) scores[i][j] = kMasked;
      top = fmaxf(top, scores[i][j]);
    }
    const float factor = rows[i].raise(reduce_warp<Max, kSimtLanes>(top), scale_log2e);
#pragma unroll
    for (int column = 0; column < Dim / 8; ++column) sums[i][column] *= factor;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      weights[i * kSimtWeightStride + member + j * kSimtLanes] = rows[i].weigh(scores[i][j], scale_log2e);
  }
}

// Grid: row_tile_limit(rows, segments, kSimtRows<Dim>) by heads, of kSimtThreads<Dim> threads.
template <typename T, int Dim>
__global__ void __launch_bounds__(kSimtThreads<Dim>, Dim == 64 ? 3 : 2)
    segment_attention_simt_kernel(const SegmentAttentionArguments<T> a) {
  constexpr int kRows = kSimtRows<Dim>;
  const RowTile tile = find_row_tile<kRows>(a.starts, int(blockIdx.x));
  if (tile.first >= tile.end) return;
  const int head = int(blockIdx.y);
  if (tile.segment == a.starts.segments) return clear_rows<T, kRows>(a, tile, head);

  const int member = int(threadIdx.x) % kSimtLanes, own = int(threadIdx.x) / kSimtLanes * kSimtPiece;
  const int length = tile.end - tile.start, block_row = tile.first - tile.start;
  const int seen = a.causal ? min(length, block_row + kRows) : length;
  float* queries = dynamic_shared<float>();
  float* buffer = queries + kRows * kSimtStride<Dim>;
  float* weights = buffer + kSimtKeys * kSimtStride<Dim> + own * kSimtWeightStride;
  const T* key = a.key + int64_t(tile.start) * a.key_row + int64_t(head) * a.key_head;
  const T* value = a.value + int64_t(tile.start) * a.value_row + int64_t(head) * a.value_head;
  read_tile<T, Dim, kRows>(queries, a.query + int64_t(tile.first) * a.query_row + int64_t(head) * a.query_head,
                           a.query_row, length - block_row, a.dim);

  float sums[kSimtPiece][Dim / 8] = {};
  OnlineRow rows[kSimtPiece];
  for (int first = 0; first < seen; first += kSimtKeys) {
    float scores[kSimtPiece][4];
    __syncthreads();  // the values before have been used
    read_tile<T, Dim, kSimtKeys>(buffer, key + int64_t(first) * a.key_row, a.key_row, length - first, a.dim);
    __syncthreads();
    score_piece<Dim>(scores, queries + own * kSimtStride<Dim>, buffer + member * kSimtStride<Dim>);
    __syncthreads();  // the keys have been used
    read_tile<T, Dim, kSimtKeys>(buffer, value + int64_t(first) * a.value_row, a.value_row, length - first, a.dim);
    const int limit = a.causal ? block_row + own + 1 : length;
    soften_piece<Dim>(sums, rows, scores, weights, limit - first, a.causal, length - first, a.scale_log2e);
    __syncthreads();  // the values are here, and the weights
    add_piece<Dim>(sums, weights, buffer + member * 4);
  }
#pragma unroll
  for (int i = 0; i < kSimtPiece; ++i) {
    const float inverse = OnlineRow::inverse(reduce_warp<Sum, kSimtLanes>(rows[i].sum));
    if (block_row + own + i >= length) continue;
    T* out = a.out + (int64_t(tile.first + own + i) * a.heads + head) * a.dim;
#pragma unroll
    for (int column = 0; column < Dim / 8; ++column) {
      const int at = column / 4 * 32 + member * 4 + column % 4;
      if (at < a.dim) out[at] = from_float<T>(sums[i][column] * inverse);
    }
  }
}

}  // namespace tessera
