// A warp's way through keys and values without tensor cores: fp32, heads and blocks of any size.
//
// 32 keys at a time: eight lanes share a key for the scores, then each lane keeps the weight of one key, and for the
// values each has its own columns. Keys and values are read once for up to eight packed rows.
//
// Next: kernels/include/paged_attention_prefill.cuh
#pragma once

#include "paged_attention.cuh"

namespace tessera {

// See paged_split_kernel for what a stream is. Dim: at least the heads' own, a multiple of 128.
template <typename T, int Dim>
class SimtStream {
 public:
  static constexpr int kRows = 8, kColumns = Dim, kSumStride = Dim + 8;
  static constexpr int kMinBlocks = Dim == 256 ? 2 : 3;
  static constexpr int kSharedBytes = (kRows * Dim + kPagedWarps * kRows * kSumStride) * int(sizeof(float));

  __device__ __forceinline__ SimtStream(const PagedTile<T>& tile, unsigned char* shared)
      : head_(tile), count_(tile.count), queries_(reinterpret_cast<float*>(shared)),
        lane_(int(threadIdx.x) % kWarpSize), warp_(int(threadIdx.x) / kWarpSize) {
    for (int index = int(threadIdx.x); index < kRows * Dim; index += kPagedThreads) {
      const int row = index / Dim, column = index % Dim;
      queries_[index] = row < tile.count && column < head_.a.dim ? to_float(tile.query(row)[column]) : 0.0f;
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) seen_[row] = tile.seen_by(row);
    __syncthreads();
  }

  __device__ __forceinline__ float* sums(int warp) const {
    return queries_ + kRows * Dim + warp * kRows * kSumStride;
  }

  __device__ __forceinline__ void attend(int begin, int end, float* tops, float* weights) {
    float sums[kRows][kPerLane] = {};
    RunningRow rows[kRows];
    for (int key = begin + warp_ * kWarpSize; key < end; key += kPagedWarps * kWarpSize) {
      float scores[kRows];
      score_keys(scores, key, end);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row >= count_) break;
        const float factor = rows[row].raise(reduce_warp<Max>(scores[row]), head_.a.scale_log2e);
        scores[row] = rows[row].weigh(scores[row], head_.a.scale_log2e);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) sums[row][i] *= factor;
      }
      add_values(sums, scores, key, end);
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float weight = reduce_warp<Sum>(rows[row].sum);
      if (lane_ == 0) {
        tops[row] = rows[row].top;
        weights[row] = weight;
      }
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) this->sums(warp_)[row * kSumStride + lane_ + i * kWarpSize] = sums[row][i];
    }
  }

 private:
  static constexpr int kPerLane = Dim / kWarpSize;
  static constexpr int kLanes = 8;  // that share a key

  // Four neighbouring elements of a head's row; those from `dim` on are zeros.
  __device__ __forceinline__ void load_four(float (&to)[4], const T* row, int column) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = 0.0f;
    if (head_.a.dim % 4 == 0) {
      if (column < head_.a.dim) load_float<4>(to, row + column);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (column + i < head_.a.dim) to[i] = to_float(row[column + i]);
    }
  }

  // Each lane gets the scores of key `first` + its number.
  __device__ __forceinline__ void score_keys(float (&scores)[kRows], int first, int end) const {
    const int member = lane_ % kLanes, group = lane_ / kLanes;
#pragma unroll
    for (int row = 0; row < kRows; ++row) scores[row] = kUnseen;
#pragma unroll 1
    for (int turn = 0; turn < kLanes; ++turn) {
      const int key = first + group * kLanes + turn;
      const bool inside = key < end;
      const T* from = head_.a.keys + (inside ? head_.at(key) : 0);
      float dots[kRows] = {};
#pragma unroll
      for (int column = member * 4; column < Dim; column += kLanes * 4) {
        float four[4] = {};
        if (inside) load_four(four, from, column);
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          if (row >= count_) break;
          const Vector<float, 4> query = load<4>(queries_ + row * Dim + column);
#pragma unroll
          for (int i = 0; i < 4; ++i) dots[row] = fmaf(query.at[i], four[i], dots[row]);
        }
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row >= count_) break;
        const float dot = reduce_warp<Sum, kLanes>(dots[row]);
        if (member == turn && key < min(seen_[row], end)) scores[row] = dot;
      }
    }
  }

  __device__ __forceinline__ void add_values(float (&sums)[kRows][kPerLane], const float (&weights)[kRows], int first,
                                             int end) const {
    const int keys = min(kWarpSize, end - first);
#pragma unroll 2
    for (int key = 0; key < keys; ++key) {
      const T* from = head_.a.values + head_.at(first + key) + lane_;
      float value[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i)
        value[i] = lane_ + i * kWarpSize < head_.a.dim ? to_float(from[i * kWarpSize]) : 0.0f;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (row >= count_) break;
        const float weight = __shfl_sync(kFullWarp, weights[row], key);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) sums[row][i] = fmaf(weight, value[i], sums[row][i]);
      }
    }
  }

  PagedHead<T> head_;
  int count_;
  float* queries_;
  int lane_, warp_;
  int seen_[kRows];
};

}  // namespace tessera
