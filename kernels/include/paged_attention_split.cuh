// Attention of a few packed rows, warps side by side along the keys: decoding, and what must round as decoding does.
//
// A block takes Stream::kRows packed rows through one split of their keys, through every few splits where a batch has
// very many, or through all of them ("whole"). Its warps go through pieces of the split on their own, without meeting;
// then their sums are added in shared memory, warp by warp. Blocks are independent, so sequences of any length share
// the device evenly.
//
// Why splits begin at 256 keys: these are 128 KiB (dim 128, bf16), which a block streams in about five times the
// latency of its first load while two others keep their multiprocessor's loads going; eight key/value heads of a single
// 8k context give 256 blocks, two for each multiprocessor of an H200; and partial sums stay at some percent of what is
// read. 512 would halve those, and leave a single short context on half as many blocks. Chosen by this arithmetic:
// nothing here was measured on a GPU.
//
// Next: kernels/include/paged_attention_mma.cuh
#pragma once

#include "paged_attention.cuh"

namespace tessera {

// Which rows and splits the blocks of a launch take.
struct PagedWork {
  bool whole;  // prefilled rows, tiles found on the device; else decoded ones
  int tiles;   // whole: numbers of tiles; else: tiles of a group
  int parts;   // blocks that share the splits of a tile, split by split in turn; 1 where whole
};

// The rows of this block.
template <int Rows, typename T>
__device__ __forceinline__ PagedTile<T> paged_tile_of_block(const PagedArguments<T>& a, const PagedWork& work) {
  const int index = int(blockIdx.x) / work.parts;
  const int number = index % work.tiles, above = index / work.tiles;
  // The longest rows of a sequence first: its last tiles see most keys.
  if (work.whole) return find_paged_tile<Rows>(a, work.tiles - 1 - number, above);
  PagedTile<T> tile(a, above / a.num_kv_heads, above % a.num_kv_heads);
  if (int(blockIdx.x) % work.parts == 0 && number == 0 && tile.sequence == 0) clear_uncovered(a, tile.kv_head);
  if (tile.count != a.group.divisor) tile.count = 0;
  tile.cut(number * Rows, Rows);
  return tile;
}

// A thread's columns of a row, N in all: four neighbours, and so on every `Step` columns. `row` begins with the first.
template <int N, int Step>
__device__ __forceinline__ void load_columns(float (&to)[N], const float* row) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const Vector<float, 4> four = load<4>(row + i / 4 * Step);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = four.at[j];
  }
}

// `most`: columns of the row from there on; the rest is not written.
template <int N, int Step, typename T>
__device__ __forceinline__ void store_columns(T* row, const float (&from)[N], float factor, int most, bool vectors) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const int column = i / 4 * Step;
    float four[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) four[j] = from[i + j] * factor;
    if (vectors && column < most) store_float<4>(row + column, four);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (!vectors && column + j < most) row[column + j] = from_float<T>(four[j]);
  }
}

// Bytes of shared memory: where one block goes through many splits, the sum of those before is kept there.
template <typename Stream>
constexpr int paged_split_bytes(bool whole) {
  return Stream::kSharedBytes + (whole ? Stream::kRows * Stream::kColumns * int(sizeof(float)) : 0);
}

// Stream goes through keys for one warp; it has kRows, kColumns (dim, rounded up), kMinBlocks, kSharedBytes, and
// - Stream(tile, shared), by all threads;
// - attend(begin, end, tops, weights), by all threads: this warp's share of the keys; leaves its sums at sums(warp),
//   rows kSumStride floats apart, and each row's largest scaled score and sum of weights in tops[row], weights[row].
// A barrier comes before the sums are read, and one before the next call.
template <typename T, typename Stream>
__global__ void __launch_bounds__(kPagedThreads, Stream::kMinBlocks)
    paged_split_kernel(const PagedArguments<T> a, const PagedWork work) {
  constexpr int kRows = Stream::kRows, kLanes = kPagedThreads / kRows, kValues = Stream::kColumns / kLanes;
  constexpr int kStep = kLanes * 4;
  SHARED(float, tops, kPagedWarps * kRows);
  SHARED(float, weights, kPagedWarps * kRows);
  const PagedTile<T> tile = paged_tile_of_block<kRows>(a, work);
  const int seen = tile.count > 0 ? tile.seen() : 0;
  const int splits = a.splits.count(seen);
  const int part = int(blockIdx.x) % work.parts;
  if (tile.count == 0 || part >= splits) return;  // the whole block

  unsigned char* shared = dynamic_shared<unsigned char>();
  Stream stream(tile, shared);
  const int warp = int(threadIdx.x) / kWarpSize;
  const int row = int(threadIdx.x) / kLanes, at = int(threadIdx.x) % kLanes * 4;
  float* kept = reinterpret_cast<float*>(shared + Stream::kSharedBytes) + row * Stream::kColumns + at;
  float kept_top = kUnseen, kept_sum = 0.0f;
  for (int split = part; split < splits; split += work.parts) {
    stream.attend(a.splits.begin(split), min(seen, a.splits.begin(split + 1)), tops + warp * kRows,
                  weights + warp * kRows);
    __syncthreads();
    PartialRow<kValues> total;
#pragma unroll
    for (int other = 0; other < kPagedWarps; ++other) {
      float values[kValues];
      load_columns<kValues, kStep>(values, stream.sums(other) + row * Stream::kSumStride + at);
      total.add(tops[other * kRows + row], weights[other * kRows + row], values);
    }
    __syncthreads();
    if (!work.whole && splits > 1) {
      if (row >= tile.count) continue;
      float* partial = a.partial(tile.sequence, tile.head(row), split);
      if (at == 0) {
        partial[0] = total.top;
        partial[1] = total.sum;
      }
      store_columns<kValues, kStep>(partial + kPartialHeader + at, total.values, 1.0f,
                                    a.partial_row - kPartialHeader - at, true);
      continue;
    }
    if (split > 0) {
      PartialRow<kValues> before;
      before.top = kept_top;
      before.sum = kept_sum;
      load_columns<kValues, kStep>(before.values, kept);
      before.add(total.top, total.sum, total.values);
      total = before;
    }
    if (split + 1 < splits) {
      kept_top = total.top;
      kept_sum = total.sum;
      store_columns<kValues, kStep>(kept, total.values, 1.0f, Stream::kColumns, true);
    } else if (row < tile.count) {
      store_columns<kValues, kStep>(tile.out(row) + at, total.values, total.inverse(), a.dim - at, a.dim % 4 == 0);
    }
  }
}

}  // namespace tessera
