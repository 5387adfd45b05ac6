// Attention inside segments (frames of images and clips, series), 16-bit, on tensor cores; see attention_tile.cuh.
//
// A block takes 64 * Tiles rows of one segment and one head, and goes through the segment's keys 64 at a time, first to
// last. Keys and values have one buffer each: values arrive while the keys are multiplied, the next keys while the
// softmax and the values are worked on. Queries are read and the output is written once; keys and values are read once
// for each tile of rows, from the second-level cache but for the first time, as tiles of one head are neighbours in the
// grid. Scores exist in registers alone.
//
// A row's result depends on its own segment alone, bit for bit: its sums run over the segment's keys in one order,
// whatever lies beside the segment, and whichever height of tile was chosen.
//
// Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1.
//
// Next: kernels/include/segment_attention_simt.cuh
#pragma once

#include "attention_tile.cuh"
#include "row_tiles.cuh"

namespace tessera {

// One attention over (rows, heads, dim); strides are in elements, output rows are contiguous.
template <typename T>
struct SegmentAttentionArguments {
  const T* query;
  const T* key;
  const T* value;
  int query_row, key_row, value_row;  // strides from row to row, and from head to head
  int query_head, key_head, value_head;
  SegmentStarts starts;
  T* out;
  int heads;
  int dim;
  float scale_log2e;
  bool causal;
};

constexpr int kAttentionThreads = 128;
constexpr int kAttentionKeys = 64;  // of a tile: part of the order of sums, so the same for all heights

template <int Tiles>
constexpr int kAttentionRows = kAttentionThreads / kWarpSize * 16 * Tiles;

template <int Dim, int Tiles>
constexpr int kAttentionSharedBytes = (kAttentionRows<Tiles> + 2 * kAttentionKeys) * kTileStride<Dim> * 2;

// Writes zeros where no segment is: what reads the padding of a captured batch then finds numbers.
template <typename T, int Height>
__device__ __forceinline__ void clear_rows(const SegmentAttentionArguments<T>& a, const RowTile& tile, int head) {
  const int count = min(Height, tile.end - tile.first) * a.dim;
  for (int index = int(threadIdx.x); index < count; index += int(blockDim.x)) {
    const int64_t row = tile.first + index / a.dim;
    a.out[(row * a.heads + head) * a.dim + index % a.dim] = from_float<T>(0.0f);
  }
}

// Excludes keys beyond the segment's end or, in causal attention, beyond the row itself. `row` and `key`, from the
// segment's start, are those of the fragments' first row and column of this lane.
template <int Columns>
__device__ __forceinline__ void mask_keys(float (&scores)[Columns][4], int row, int key, int length, bool causal) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int limit = causal ? min(row + i / 2 * 8 + 1, length) : length;
#pragma unroll
    for (int column = 0; column < Columns; ++column) {
      if (key + column * 8 + i % 2 >= limit) scores[column][i] = kMasked;
    }
  }
}

// Divides a warp's sums by their weights and writes them, through its own rows of shared memory, in whole words.
template <typename T, int Dim, int Tiles>
__device__ __forceinline__ void store_rows(const SegmentAttentionArguments<T>& a, T* shared,
                                           const float (&sums)[Tiles][Dim / 8][4], const OnlineRow (&rows)[Tiles][2],
                                           int first, int count, int head) {
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < 2 * Tiles; ++i) {
    const int tile = i / 2, half = i % 2;
    const float inverse = OnlineRow::inverse(reduce_warp<Sum, 4>(rows[tile][half].sum));
    T* to = shared + (tile * 16 + half * 8 + lane / 4) * kTileStride<Dim> + lane % 4 * 2;
#pragma unroll
    for (int column = 0; column < Dim / 8; ++column)
      *reinterpret_cast<uint32_t*>(to + column * 8) =
          pack_pair<T>(sums[tile][column][2 * half] * inverse, sums[tile][column][2 * half + 1] * inverse);
  }
  __syncwarp();
  constexpr int kWord = kVectorLength<T>, kWords = Dim / kWord;
#pragma unroll 4
  for (int index = lane; index < 16 * Tiles * kWords; index += kWarpSize) {
    const int row = index / kWords, column = index % kWords * kWord;
    if (row >= count || column >= a.dim) continue;
    T* to = a.out + (int64_t(first + row) * a.heads + head) * a.dim + column;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(shared + row * kTileStride<Dim> + column);
  }
}

// Blocks that share a multiprocessor, as registers allow.
template <int Dim, int Tiles>
constexpr int kAttentionBlocks = Tiles == 1 && Dim <= 80 ? 3 : 2;

// Grid: row_tile_limit(rows, segments, kAttentionRows<Tiles>) by heads.
template <typename T, int Dim, int Tiles>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<Dim, Tiles>)
    segment_attention_kernel(const SegmentAttentionArguments<T> a) {
  constexpr int kRows = kAttentionRows<Tiles>, kKeys = kAttentionKeys, kThreads = kAttentionThreads;
  constexpr bool kKeepQueries = Tiles * Dim <= 160;  // else registers run out
  const RowTile tile = find_row_tile<kRows>(a.starts, int(blockIdx.x));
  if (tile.first >= tile.end) return;
  const int head = int(blockIdx.y);
  if (tile.segment == a.starts.segments) return clear_rows<T, kRows>(a, tile, head);

  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int length = tile.end - tile.start;
  const int block_row = tile.first - tile.start, warp_row = block_row + warp * 16 * Tiles;  // in the segment
  const int seen = a.causal ? min(length, block_row + kRows) : length;                      // keys, by any row
  const int warp_seen = warp_row >= length ? 0 : a.causal ? min(length, warp_row + 16 * Tiles) : length;
  const int all_see = a.causal ? warp_row + 1 : length;  // keys that every row of the warp sees

  T* queries_shared = dynamic_shared<T>();
  T* keys_shared = queries_shared + kRows * kTileStride<Dim>;
  T* values_shared = keys_shared + kKeys * kTileStride<Dim>;
  T* warp_shared = queries_shared + warp * 16 * Tiles * kTileStride<Dim>;
  const auto copy = [&](T* to, const T* from, int row_stride, int head_stride, int row, auto height) {
    constexpr int kHeight = decltype(height)::value;
    from += int64_t(tile.start + row) * row_stride + int64_t(head) * head_stride;
    copy_tile<T, Dim, kHeight, kThreads>(to, from, row_stride, length - row, a.dim);
    commit_copies();
  };
  using KeyTile = std::integral_constant<int, kKeys>;
  copy(queries_shared, a.query, a.query_row, a.query_head, block_row, std::integral_constant<int, kRows>());
  copy(keys_shared, a.key, a.key_row, a.key_head, 0, KeyTile());
  wait_copies<1>();
  __syncthreads();
  Queries<T, Dim, Tiles, kKeepQueries> queries;
  queries.load(warp_shared, lane);

  float sums[Tiles][Dim / 8][4] = {};
  OnlineRow rows[Tiles][2];
  for (int first = 0; first < seen; first += kKeys) {
    float scores[Tiles][kKeys / 8][4];
    const bool works = first < warp_seen;
    wait_copies<0>();
    __syncthreads();  // the keys are here, and the values before have been used
    copy(values_shared, a.value, a.value_row, a.value_head, first, KeyTile());
    if (works) score_keys<T, Dim>(scores, queries, keys_shared, lane);
    wait_copies<0>();
    __syncthreads();  // the values are here, and the keys have been used
    if (first + kKeys < seen) copy(keys_shared, a.key, a.key_row, a.key_head, first + kKeys, KeyTile());
    if (!works) continue;
#pragma unroll
    for (int i = 0; i < Tiles; ++i) {
      if (first + kKeys > all_see)
        mask_keys(scores[i], warp_row + i * 16 + lane / 4, first + lane % 4 * 2, length, a.causal);
      online_softmax(scores[i], sums[i], rows[i], a.scale_log2e);
    }
    add_values<T, Dim>(sums, scores, values_shared, lane);
  }
  store_rows<T, Dim, Tiles>(a, warp_shared, sums, rows, tile.first + warp * 16 * Tiles, length - warp_row, head);
}

}  // namespace tessera
