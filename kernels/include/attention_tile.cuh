// Attention on tensor cores, for a warp: rows of 16-bit elements in shared memory, and the two products between which
// the softmax stands. The scores' fragments become the weights' without leaving their registers.
//
// Rows in shared memory lie Dim + 8 elements apart, an odd number of 16-byte words: the eight rows that ldmatrix reads
// together fall into different banks. Dim is a multiple of 16; columns behind the head's own are zeros.
//
// Next: kernels/include/segment_attention.cuh
#pragma once

#include "online_softmax.cuh"
#include "ptx.cuh"
#include "vector.cuh"

namespace tessera {

template <int Dim>
constexpr int kTileStride = Dim + 8;

// Starts copying `Rows` rows to shared memory, by all threads of the block; rows from `valid` on and columns from `dim`
// on become zeros. `from` and `stride` (elements) keep rows at multiples of 16 bytes; Rows * stride fits an int.
//
// A thread keeps its column, so that its next address is one addition away: that costs fewer instructions and registers
// than giving every lane work in rows of 10 or 12 words.
template <typename T, int Dim, int Rows, int Threads>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, int stride, int valid, int dim) {
  constexpr int kWord = kVectorLength<T>, kLanes = Dim <= 8 * kWord ? 8 : 16, kStep = Threads / kLanes;
  static_assert(Dim <= kLanes * kWord && Rows % kStep == 0, "threads share a tile evenly");
  const int row = int(threadIdx.x) / kLanes, column = int(threadIdx.x) % kLanes * kWord;
  if (column >= Dim) return;
  if (column >= dim) valid = 0;
  tile += row * kTileStride<Dim> + column;
  from += row * stride + column;
#pragma unroll
  for (int first = 0; first < Rows; first += kStep) {
    copy_async_16(tile + first * kTileStride<Dim>, from, row + first < valid);
    from += kStep * stride;
  }
}

// Where a lane's row of a 16 x 16 piece begins for ldmatrix: matrices go down first (queries, values transposed), or
// across first (keys).
template <int Dim>
__device__ __forceinline__ int down_first(int lane) {
  return lane % 16 * kTileStride<Dim> + lane / 16 * 8;
}
template <int Dim>
__device__ __forceinline__ int across_first(int lane) {
  return (lane / 16 * 8 + lane % 8) * kTileStride<Dim> + lane / 8 % 2 * 8;
}

// A warp's queries, 16 * Tiles rows: kept in registers, or read again from shared memory for each tile of keys.
template <typename T, int Dim, int Tiles, bool Kept>
class Queries {
 public:
  __device__ __forceinline__ void load(const T* rows, int lane) {
    rows_ = rows + down_first<Dim>(lane);
    if constexpr (Kept) {
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
        for (int step = 0; step < Dim / 16; ++step) read(kept_[tile][step], tile, step);
      }
    }
  }

  __device__ __forceinline__ void get(uint32_t (&fragment)[4], int tile, int step) const {
    if constexpr (Kept) {
#pragma unroll
      for (int i = 0; i < 4; ++i) fragment[i] = kept_[tile][step][i];
    } else {
      read(fragment, tile, step);
    }
  }

 private:
  __device__ __forceinline__ void read(uint32_t (&fragment)[4], int tile, int step) const {
    ldmatrix_x4(fragment, rows_ + tile * 16 * kTileStride<Dim> + step * 16);
  }

  const T* rows_;
  uint32_t kept_[Kept ? Tiles : 1][Kept ? Dim / 16 : 1][4];
};

// scores = queries keys^T, `Columns` * 8 keys.
template <typename T, int Dim, int Tiles, bool Kept, int Columns>
__device__ __forceinline__ void score_keys(float (&scores)[Tiles][Columns][4],
                                           const Queries<T, Dim, Tiles, Kept>& queries, const T* keys, int lane) {
#pragma unroll
  for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
    for (int column = 0; column < Columns; ++column) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][column][i] = 0.0f;
    }
  }
  keys += across_first<Dim>(lane);
  [[maybe_unused]] constexpr int kTogether = Kept ? Dim / 16 : 1;  // steps: queries read again leave few registers
#pragma unroll kTogether
  for (int step = 0; step < Dim / 16; ++step) {
    uint32_t query[Tiles][4];
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) queries.get(query[tile], tile, step);
#pragma unroll
    for (int column = 0; column < Columns; column += 2) {
      uint32_t key[4];
      ldmatrix_x4(key, keys + column * 8 * kTileStride<Dim> + step * 16);
      const uint32_t even[2] = {key[0], key[1]}, odd[2] = {key[2], key[3]};
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        mma_m16n8k16<T>(scores[tile][column], query[tile], even);
        mma_m16n8k16<T>(scores[tile][column + 1], query[tile], odd);
      }
    }
  }
}

// sums += weights values, the weights rounded to T.
template <typename T, int Dim, int Tiles, int Columns>
__device__ __forceinline__ void add_values(float (&sums)[Tiles][Dim / 8][4], const float (&weights)[Tiles][Columns][4],
                                           const T* values, int lane) {
  values += down_first<Dim>(lane);
#pragma unroll
  for (int column = 0; column < Columns; column += 2) {
    uint32_t weight[Tiles][4];
#pragma unroll
    for (int tile = 0; tile < Tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[tile][i] = pack_pair<T>(weights[tile][column + i / 2][i % 2 * 2],
                                       weights[tile][column + i / 2][i % 2 * 2 + 1]);
    }
#pragma unroll
    for (int step = 0; step < Dim / 16; ++step) {
      uint32_t value[4];
      ldmatrix_x4_transposed(value, values + column * 8 * kTileStride<Dim> + step * 16);
      const uint32_t even[2] = {value[0], value[1]}, odd[2] = {value[2], value[3]};
#pragma unroll
      for (int tile = 0; tile < Tiles; ++tile) {
        mma_m16n8k16<T>(sums[tile][2 * step], weight[tile], even);
        mma_m16n8k16<T>(sums[tile][2 * step + 1], weight[tile], odd);
      }
    }
  }
}

}  // namespace tessera
