// Positions of patches in their items' grids: entries and weights that resample a learned table, their sum added to
// rows, and the tables of the two-dimensional rotary embedding.
//
// Positions are derived from the grids on the device, so nothing of an item's size is known at launch. What moves:
// position_taps and vision_rotary write their tables once; add_positions reads and writes rows once, and takes table
// entries from the caches: neighbouring patches share most of them, so a thread keeps its columns for some rows and
// loads an entry again only where the row before had another. Sixteen taps are bound by their arithmetic.
//
// Next: kernels/csrc/positions.cu
#pragma once

#include "items.cuh"
#include "vector.cuh"

namespace tessera {

constexpr int kGridWidth = 4;  // first row, t, h, w
constexpr int kPositionRows = 4;  // of a thread of add_positions
constexpr int kRotaryThreads = 256;

// Where the patch of a row lies whose item has been found.
__device__ __forceinline__ PatchPlace place_in_grid(const int64_t* grids, int item, int64_t row, unsigned merge) {
  if (item < 0) return {false, 0, 0, 0};
  const int64_t* grid = grids + int64_t(item) * kGridWidth;
  return place_patch(row - grid[0], grid[1], unsigned(grid[2]), unsigned(grid[3]), merge);
}

// A place between entries of one axis, `fraction` of the way behind entry `low`; rest = 1 - fraction. Both are
// quotients of whole numbers, so each is exact to its last digit.
struct AxisPlace {
  int low;
  float fraction, rest;
};

__device__ __forceinline__ AxisPlace between(unsigned numerator, unsigned span) {
  const unsigned whole = numerator / span, remainder = numerator - whole * span;
  return {int(whole), float(remainder) / float(span), float(span - remainder) / float(span)};
}

// Corners aligned: sample i of `size` lies at i (side - 1) / (size - 1).
__device__ __forceinline__ AxisPlace linear_place(unsigned i, unsigned size, unsigned side) {
  return between(i * (side - 1), max(size, 2u) - 1);
}

// Pixel centres: sample i lies at (i + 1/2) side / size - 1/2, one more here to stay positive.
__device__ __forceinline__ AxisPlace cubic_place(unsigned i, unsigned size, unsigned side) {
  AxisPlace place = between((2 * i + 1) * side + size, 2 * size);
  place.low -= 1;
  return place;
}

// The cubic convolution kernel of a = -0.75 at tap -1, 0, 1, 2 from the entry below, in factors that do not cancel.
__device__ __forceinline__ float cubic_weight(const AxisPlace& place, int tap) {
  constexpr float kA = -0.75f;
  const float near = tap <= 0 ? place.fraction : place.rest, far = tap <= 0 ? place.rest : place.fraction;
  if (tap == -1 || tap == 2) return kA * near * far * far;
  return ((kA + 2.0f) * near - (kA + 3.0f)) * near * near + 1.0f;
}

// Four taps of a row: all of bilinear weights, or those of row tap `group` - 1 of cubic ones.
template <bool Cubic>
__device__ __forceinline__ void taps_of(int (&index)[4], float (&weight)[4], const PatchPlace& patch, unsigned height,
                                        unsigned width, int side, int group) {
  if constexpr (Cubic) {
    const AxisPlace row = cubic_place(patch.row, height, unsigned(side));
    const AxisPlace column = cubic_place(patch.column, width, unsigned(side));
    const float row_weight = cubic_weight(row, group - 1);
    const int first = min(max(row.low + group - 1, 0), side - 1) * side;
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      index[tap] = first + min(max(column.low + tap - 1, 0), side - 1);
      weight[tap] = row_weight * cubic_weight(column, tap - 1);
    }
  } else {
    const AxisPlace row = linear_place(patch.row, height, unsigned(side));
    const AxisPlace column = linear_place(patch.column, width, unsigned(side));
#pragma unroll
    for (int tap = 0; tap < 4; ++tap) {
      const bool lower = tap / 2, right = tap % 2;
      index[tap] = min(row.low + lower, side - 1) * side + min(column.low + right, side - 1);
      weight[tap] = (lower ? row.fraction : row.rest) * (right ? column.fraction : column.rest);
    }
  }
}

// index, weight: (rows, 4), or (rows, 16) where Cubic. A thread makes four taps, which it writes as vectors.
template <bool Cubic>
__global__ void position_taps_kernel(const int64_t* grids, int count, int64_t rows, int merge, int side, int* index,
                                     float* weight) {
  constexpr int kGroups = Cubic ? 4 : 1;
  const int64_t first = int64_t(blockIdx.x) * (blockDim.x / kGroups), row = first + threadIdx.x / kGroups;
  int item = find_item(grids, kGridWidth, count, first);
  if (row >= rows) return;
  item = next_item(grids, kGridWidth, count, item, row);
  const PatchPlace patch = place_in_grid(grids, item, row, unsigned(merge));
  int entries[4] = {};
  float weights[4] = {};
  if (patch.inside) {
    const int64_t* grid = grids + int64_t(item) * kGridWidth;
    taps_of<Cubic>(entries, weights, patch, unsigned(grid[2]), unsigned(grid[3]), side, int(threadIdx.x) % kGroups);
  }
  const int64_t at = (first * kGroups + threadIdx.x) * 4;
  *reinterpret_cast<int4*>(index + at) = make_int4(entries[0], entries[1], entries[2], entries[3]);
  store_float<4>(weight + at, weights);
}

template <typename T>
struct AddPositionsArguments {
  T* x;  // (rows, hidden)
  int64_t stride;
  const T* bias;        // (hidden,); or null
  const T* table;       // (entries, hidden)
  const int* index;     // (rows, taps)
  const float* weight;  // (rows, taps)
  int64_t rows;
  int hidden;
  int column_blocks;  // neighbouring blocks that share the columns of kPositionRows rows
};

// values[r] += sum over four taps of weight * table[index], for the columns from `column` on.
template <typename T, int N>
__device__ __forceinline__ void add_taps(float (&values)[kPositionRows][N], const AddPositionsArguments<T>& a,
                                         const int4 (&index)[kPositionRows], const float4 (&weight)[kPositionRows],
                                         int column) {
#pragma unroll
  for (int tap = 0; tap < 4; ++tap) {
    const auto entry = [&](int r) {
      return tap == 0 ? index[r].x : tap == 1 ? index[r].y : tap == 2 ? index[r].z : index[r].w;
    };
    // Loads first, all under way together; every lane of a warp has the same entries, so its branches are one way.
    Packed<T, N> entries[kPositionRows];
#pragma unroll
    for (int r = 0; r < kPositionRows; ++r)
      if (r == 0 || entry(r) != entry(r - 1))
        entries[r] = load_packed<N>(a.table + int64_t(entry(r)) * a.hidden + column);
    float loaded[N];
#pragma unroll
    for (int r = 0; r < kPositionRows; ++r) {
      if (r == 0 || entry(r) != entry(r - 1)) unpack(loaded, entries[r]);
      const float share = tap == 0 ? weight[r].x : tap == 1 ? weight[r].y : tap == 2 ? weight[r].z : weight[r].w;
#pragma unroll
      for (int i = 0; i < N; ++i) values[r][i] += share * loaded[i];
    }
  }
}

template <typename T, int N, int Taps>
__global__ void add_positions_kernel(const AddPositionsArguments<T> a) {
  const int64_t row = int64_t(blockIdx.x / unsigned(a.column_blocks)) * kPositionRows;
  const int column = int(blockIdx.x % unsigned(a.column_blocks) * blockDim.x + threadIdx.x) * N;
  if (column >= a.hidden) return;
  float values[kPositionRows][N], bias[N] = {};
  if (a.bias) load_float<N>(bias, a.bias + column);
  int64_t places[kPositionRows];  // the last row stands for those behind it
#pragma unroll
  for (int r = 0; r < kPositionRows; ++r) places[r] = min(row + r, a.rows - 1);
  Packed<T, N> before[kPositionRows];
#pragma unroll
  for (int r = 0; r < kPositionRows; ++r) before[r] = load_packed<N>(a.x + places[r] * a.stride + column);
#pragma unroll
  for (int r = 0; r < kPositionRows; ++r) {
    unpack(values[r], before[r]);
#pragma unroll
    for (int i = 0; i < N; ++i) values[r][i] += bias[i];
  }
#pragma unroll 1
  for (int first = 0; first < Taps; first += 4) {
    int4 index[kPositionRows];
    float4 weight[kPositionRows];
#pragma unroll
    for (int r = 0; r < kPositionRows; ++r) {
      index[r] = *reinterpret_cast<const int4*>(a.index + places[r] * Taps + first);
      weight[r] = *reinterpret_cast<const float4*>(a.weight + places[r] * Taps + first);
    }
    add_taps<T, N>(values, a, index, weight, column);
  }
#pragma unroll
  for (int r = 0; r < kPositionRows; ++r)
    if (row + r < a.rows) store_float<N>(a.x + (row + r) * a.stride + column, values[r]);
}

// cos, sin: (rows, 2 * half): the first half turns by a patch's row, the second by its column. A block finds the places
// of `groups` blocks of merge x merge patches, at most one a thread; then a thread takes one column of the tables for
// all patches of such a block, which have `merge` angles between them.
__global__ void vision_rotary_kernel(const int64_t* grids, int count, int64_t rows, int merge, const float* inv_freq,
                                     int half, float* cos, float* sin, int groups) {
  SHARED(PatchPlace, corners, kRotaryThreads);
  const unsigned width = 2 * unsigned(half), members = unsigned(merge * merge);
  const int64_t first = int64_t(blockIdx.x) * groups * members;
  const int first_item = find_item(grids, kGridWidth, count, first);
  if (int(threadIdx.x) < groups) {
    const int64_t row = first + int64_t(threadIdx.x) * members;
    const int item = next_item(grids, kGridWidth, count, first_item, row);
    corners[threadIdx.x] = place_in_grid(grids, item, row, unsigned(merge));
  }
  __syncthreads();
  for (unsigned task = threadIdx.x; task < unsigned(groups) * width; task += blockDim.x) {
    const unsigned group = task / width, column = task % width;
    const int64_t row = first + int64_t(group) * members;
    if (row >= rows) return;
    const bool by_column = column >= unsigned(half);
    const PatchPlace corner = corners[group];
    const unsigned position = by_column ? corner.column : corner.row, step = by_column ? unsigned(merge) : 1u;
    const float frequency = inv_freq[by_column ? column - unsigned(half) : column];
    for (unsigned i = 0; i < unsigned(merge); ++i) {
      const float angle = corner.inside ? float(position + i) * frequency : 0.0f;
      float sine, cosine;
      sincosf(angle, &sine, &cosine);
      int64_t place = row + (by_column ? i : i * unsigned(merge));
      for (int j = 0; j < merge && place < rows; ++j, place += step) {
        cos[place * width + column] = cosine;
        sin[place * width + column] = sine;
      }
    }
  }
}

}  // namespace tessera
