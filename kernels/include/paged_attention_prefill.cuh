// Attention of prefilled tokens, 16-bit, on tensor cores: tiles of many packed rows through all keys that they see.
//
// The packed rows of a group share keys and values: a tile of 128 rows in groups of four is 32 tokens of four heads,
// and keys and values come from the second-level cache once for it, not four times. They are copied through the block
// table, the next step's while this one's are worked on. Steps that a warp's rows do not see are passed over.
//
// What moves: queries and outputs once, keys and values once for each tile of rows, after the first time from the
// second-level cache. A chunk of few tokens far into its prompt has few tiles, each of which goes through the whole
// context by itself. Not measured.
//
// Source: FlashAttention-2 (arXiv 2307.08691), algorithm 1.
//
// Next: kernels/csrc/paged_attention.cu
#pragma once

#include "paged_attention_mma.cuh"

namespace tessera {

// Sizes by head dim. `kKeys` is part of the order of sums.
template <int Dim>
struct PrefillShape {
  static constexpr int kTiles = Dim == 256 ? 1 : 2;
  static constexpr int kRows = kPagedWarps * 16 * kTiles;
  static constexpr int kKeys = Dim == 64 ? 64 : 32;
  static constexpr int kStage = kKeys * kTileStride<Dim>;  // elements of one stage's keys, or values
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = (kRows * kTileStride<Dim> + kStages * 2 * kStage) * 2;
};

// Starts copying a step's keys to `keys` and their values behind them; those from `end` on become zeros.
template <typename T, int Dim>
__device__ __forceinline__ void copy_step(T* keys, const PagedHead<T>& head, int key, int end) {
  using Shape = PrefillShape<Dim>;
  constexpr int kWord = kVectorLength<T>, kLanes = Dim / kWord, kStep = kPagedThreads / kLanes;
  const PagedArguments<T>& a = head.a;
  const int row = int(threadIdx.x) / kLanes, column = int(threadIdx.x) % kLanes * kWord;
  T* to = keys + row * kTileStride<Dim> + column;
#pragma unroll
  for (int piece = 0; piece < Shape::kKeys; piece += kPieceKeys) {
    const int valid = column < a.dim ? end - key - piece : 0;
    const int64_t from = (valid > 0 ? head.at(key + piece) : 0) + row * a.dim + column;
#pragma unroll
    for (int first = 0; first < kPieceKeys; first += kStep) {
      const bool inside = row + first < valid;
      T* at = to + (piece + first) * kTileStride<Dim>;
      copy_async_16(at, a.keys + from + first * a.dim, inside);
      copy_async_16(at + Shape::kStage, a.values + from + first * a.dim, inside);
    }
  }
  commit_copies();
}

// Divides a warp's sums by their weights and writes them, pairs of columns at a time.
template <typename T, int Dim, int Tiles>
__device__ __forceinline__ void store_tile(const PagedTile<T>& tile, const float (&sums)[Tiles][Dim / 8][4],
                                           const RunningRow (&rows)[Tiles][2], int first) {
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < 2 * Tiles; ++i) {
    const float total = reduce_warp<Sum, 4>(rows[i / 2][i % 2].sum);
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    const int row = first + i * 8 + lane / 4;
    if (row >= tile.count) continue;
    T* out = tile.out(row) + lane % 4 * 2;
#pragma unroll
    for (int column = 0; column < Dim / 8; ++column) {
      const float* from = &sums[i / 2][column][i % 2 * 2];
      if (column * 8 < tile.a.dim) store_float<2>(out + column * 8, {from[0] * inverse, from[1] * inverse});
    }
  }
}

template <typename T, int Dim>
__global__ void __launch_bounds__(kPagedThreads) paged_prefill_kernel(const PagedArguments<T> a, const int tiles) {
  using Shape = PrefillShape<Dim>;
  constexpr int kTiles = Shape::kTiles, kKeys = Shape::kKeys;
  // The longest rows of a sequence first: its last tiles see most keys.
  const PagedTile<T> tile =
      find_paged_tile<Shape::kRows>(a, tiles - 1 - int(blockIdx.x) % tiles, int(blockIdx.x) / tiles);
  if (tile.count == 0) return;  // the whole block
  T* queries_shared = dynamic_shared<T>();
  T* steps_shared = queries_shared + Shape::kRows * kTileStride<Dim>;
  const int lane = int(threadIdx.x) % kWarpSize;
  const int warp_row = int(threadIdx.x) / kWarpSize * 16 * kTiles;
  const int seen = tile.seen();
  const int warp_seen = warp_row < tile.count ? tile.seen_by(warp_row + 16 * kTiles - 1) : 0;
  const int all_see = tile.seen_by(warp_row);
  const PagedHead<T> head(tile);
  const auto stage = [&](int step) { return steps_shared + step % Shape::kStages * 2 * Shape::kStage; };

  copy_queries<Dim, Shape::kRows>(queries_shared, tile);
  const int steps = ceil_div(seen, kKeys);
  if (steps > 0) copy_step<T, Dim>(stage(0), head, 0, seen);
  Queries<T, Dim, kTiles, false> queries;
  queries.load(queries_shared + warp_row * kTileStride<Dim>, lane);
  float sums[kTiles][Dim / 8][4] = {};
  RunningRow rows[kTiles][2];
  int rows_see[kTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) rows_see[i / 2][i % 2] = tile.seen_by(warp_row + i * 8 + lane / 4);
  for (int step = 0; step < steps; ++step) {
    const int key = step * kKeys;
    wait_copies<0>();
    __syncthreads();  // this step is here, and the one before has been used
    if (step + 1 < steps) copy_step<T, Dim>(stage(step + 1), head, key + kKeys, seen);
    if (key >= warp_seen) continue;
    const T* keys_shared = stage(step);
    float scores[kTiles][kKeys / 8][4];
    score_piece<T, Dim>(scores, queries, keys_shared, lane);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      if (key + kKeys > all_see) hide_keys(scores[i], rows_see[i], key + lane % 4 * 2);
      online_softmax(scores[i], sums[i], rows[i], a.scale_log2e);
    }
    add_values<T, Dim>(sums, scores, keys_shared + Shape::kStage, lane);
  }
  wait_copies<0>();
  store_tile<T, Dim, kTiles>(tile, sums, rows, warp_row);
}

}  // namespace tessera
