// A warp's way through keys and values of 16-bit elements, 16 packed rows at a time on tensor cores.
//
// The warp has a ring of slots of its own in shared memory, each for 16 keys or for their values, filled by
// asynchronous copies: it waits for nothing but its own next slot, and the others are under way meanwhile. Pieces of 16
// keys lie in one block of the cache, since its size is a multiple of 16.
//
// In flight for a block of four warps: 48 KiB of 64 at dim 128, and three such blocks fit a multiprocessor of an H200;
// its share of the bandwidth, 36 bytes a nanosecond, needs some 40 KiB in flight at a latency of one microsecond. Not
// measured.
//
// Next: kernels/include/paged_attention_simt.cuh
#pragma once

#include "attention_tile.cuh"
#include "paged_attention.cuh"

namespace tessera {

constexpr int kPieceKeys = 16;

// Starts copying a tile's queries to shared memory, by all threads of the block; rows behind the last and columns from
// `dim` on become zeros. Complete after the copies are waited for, and a barrier.
template <int Dim, int Rows, typename T>
__device__ __forceinline__ void copy_queries(T* shared, const PagedTile<T>& tile) {
  constexpr int kWord = kVectorLength<T>, kWords = Dim / kWord;
  const int dim = tile.a.dim;
  for (int index = int(threadIdx.x); index < Rows * kWords; index += kPagedThreads) {
    const int row = index / kWords, column = index % kWords * kWord;
    const bool inside = row < tile.count && column < dim;
    const T* from = tile.query(inside ? row : 0) + (inside ? column : 0);
    T* to = shared + row * kTileStride<Dim> + column;
    if (tile.a.query_words) {
      copy_async_16(to, from, inside);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kWord; ++i) to[i] = inside ? from[i] : from_float<T>(0.0f);
  }
}

// scores = queries keys^T, as `score_keys`, but without a loop: with it the tall tiles of the prefill spill registers.
template <typename T, int Dim, int Tiles, bool Kept, int Columns>
__device__ __forceinline__ void score_piece(float (&scores)[Tiles][Columns][4],
                                            const Queries<T, Dim, Tiles, Kept>& queries, const T* keys, int lane) {
#pragma unroll
  for (int i = 0; i < Tiles * Columns * 4; ++i) scores[i / 4 / Columns][i / 4 % Columns][i % 4] = 0.0f;
  keys += across_first<Dim>(lane);
#pragma unroll
  for (int step = 0; step < Dim / 16; ++step) {
    uint32_t query[Tiles][4];
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) queries.get(query[tile], tile, step);
#pragma unroll
    for (int column = 0; column < Columns; column += 2) {
      uint32_t key[4];
      ldmatrix_x4(key, keys + column * 8 * kTileStride<Dim> + step * 16);
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        mma_m16n8k16<T>(scores[tile][column], query[tile], {key[0], key[1]});
        mma_m16n8k16<T>(scores[tile][column + 1], query[tile], {key[2], key[3]});
      }
    }
  }
}

// Hides keys that the fragment's rows do not see: `seen` of rows g and g + 8, `key` of the lane's first column.
template <int Columns>
__device__ __forceinline__ void hide_keys(float (&scores)[Columns][4], const int (&seen)[2], int key) {
#pragma unroll
  for (int column = 0; column < Columns; ++column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (key + column * 8 + i % 2 >= seen[i / 2]) scores[column][i] = kUnseen;
    }
  }
}

// See paged_split_kernel for what a stream is. Dim: 64, 128 or 256.
template <typename T, int Dim>
class MmaStream {
 public:
  static constexpr int kRows = 16, kColumns = Dim, kSumStride = Dim + 8;
  static constexpr int kMinBlocks = Dim == 256 ? 2 : 3;
  static constexpr int kSlots = Dim == 64 ? 6 : Dim == 128 ? 4 : 2;
  static constexpr int kSlot = kPieceKeys * kTileStride<Dim>;  // elements
  static constexpr int kSharedBytes = (1 + kPagedWarps * kSlots) * kSlot * int(sizeof(T));
  static_assert(kSlots * kSlot * sizeof(T) >= kRows * kSumStride * sizeof(float), "sums fit a warp's slots");

  __device__ __forceinline__ MmaStream(const PagedTile<T>& tile, unsigned char* shared)
      : head_(tile, lane() / kLanes * tile.a.dim + lane() % kLanes * kVectorLength<T>),
        shared_(reinterpret_cast<T*>(shared)), seen_{tile.seen_by(lane() / 4), tile.seen_by(lane() / 4 + 8)},
        all_see_(tile.seen_by(0)) {
    copy_queries<Dim, kRows>(shared_, tile);
    commit_copies();
  }

  __device__ __forceinline__ float* sums(int warp) const { return reinterpret_cast<float*>(ring(warp)); }

  __device__ __forceinline__ void attend(int begin, int end, float* tops, float* weights) {
    begin += warp() * kPieceKeys;  // of this warp; its next piece is kStride further
    constexpr int kStride = kPagedWarps * kPieceKeys;
    int next = begin, block = next < end ? head_.block_of(next) : 0;
    int64_t from = 0;
    int filled = 0;
    const auto fill = [&](bool keys) {
      if (next < end) {
        if (keys) {
          from = head_.at(next, block);
          if (next + kStride < end) block = head_.block_of(next + kStride);  // on its way meanwhile
        }
        copy_piece(filled, (keys ? head_.a.keys : head_.a.values) + from, end - next);
      }
      commit_copies();
      filled = filled == kSlots - 1 ? 0 : filled + 1;
      if (!keys) next += kStride;
    };
#pragma unroll
    for (int first = 0; first < kSlots; ++first) fill(first % 2 == 0);
    if (!ready_) {
      wait_copies<kSlots>();
      __syncthreads();
      queries_.load(shared_, lane());
      ready_ = true;
    }
    float sums[1][Dim / 8][4] = {};
    RunningRow rows[2];
    for (int key = begin, used = 0; key < end; key += kStride) {
      float scores[1][kPieceKeys / 8][4];
      wait_copies<kSlots - 1>();
      __syncwarp();
      score_piece<T, Dim>(scores, queries_, slot(used), lane());
      __syncwarp();  // all lanes have read the slot
      fill(true);
      if (key + kPieceKeys > all_see_) hide_keys(scores[0], seen_, key + lane() % 4 * 2);
      online_softmax(scores[0], sums[0], rows, head_.a.scale_log2e);
      wait_copies<kSlots - 1>();
      __syncwarp();
      add_values<T, Dim>(sums, scores, slot(used + 1), lane());
      __syncwarp();
      fill(false);
      used = used == kSlots - 2 ? 0 : used + 2;
    }
    wait_copies<0>();
    leave(sums[0], rows, tops, weights);
  }

 private:
  static constexpr int kLanes = Dim / kVectorLength<T>;  // that share a row when it is copied

  __device__ __forceinline__ static int lane() { return int(threadIdx.x) % kWarpSize; }
  __device__ __forceinline__ static int warp() { return int(threadIdx.x) / kWarpSize; }

  __device__ __forceinline__ T* ring(int warp) const { return shared_ + (1 + warp * kSlots) * kSlot; }
  __device__ __forceinline__ T* slot(int index) const { return ring(warp()) + index * kSlot; }

  // Starts copying 16 rows to a slot; those from `valid` on, and columns behind the last, become zeros.
  __device__ __forceinline__ void copy_piece(int index, const T* from, int valid) const {
    constexpr int kStep = kWarpSize / kLanes;
    const int row = lane() / kLanes, column = lane() % kLanes * kVectorLength<T>;
    if (column >= head_.a.dim) valid = 0;
    T* to = slot(index) + row * kTileStride<Dim> + column;
#pragma unroll
    for (int first = 0; first < kPieceKeys; first += kStep) {
      copy_async_16(to, from, row + first < valid);
      to += kStep * kTileStride<Dim>;
      from += kStep * head_.a.dim;
    }
  }

  __device__ __forceinline__ void leave(const float (&sums)[Dim / 8][4], const RunningRow (&rows)[2], float* tops,
                                        float* weights) const {
    float* to = this->sums(warp()) + lane() / 4 * kSumStride + lane() % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float weight = reduce_warp<Sum, 4>(rows[half].sum);
      if (lane() % 4 == 0) {
        tops[lane() / 4 + 8 * half] = rows[half].top;
        weights[lane() / 4 + 8 * half] = weight;
      }
#pragma unroll
      for (int column = 0; column < Dim / 8; ++column)
        store_float<2>(to + half * 8 * kSumStride + column * 8, {sums[column][2 * half], sums[column][2 * half + 1]});
    }
  }

  PagedHead<T> head_;  // at what this lane copies first of a piece
  T* shared_;
  int seen_[2];  // by rows g and g + 8
  int all_see_;
  bool ready_ = false;
  Queries<T, Dim, 1, Dim <= 128> queries_;
};

}  // namespace tessera
