// Grouped products: each row by the matrix of its expert, out[entry] = weight[expert] x[entry / choices].
//
// Rows are gathered and scattered through `order` (moe_routing.cuh), so nothing is permuted in memory. A block takes
// rows of one expert; which, it finds from `starts`, so the host knows none of the counts. Weights that nobody chose
// are not read, those of a chosen expert once for each tile of its rows; tiles beside each other share them in the
// second cache. With SwiGLU a tile has gate and up rows of the same columns, in turns of 8, and only their product is
// written.
//
// A sum runs over k from first to last in one accumulator, whatever the tile, so a row's numbers do not depend on the
// batch that it is in.
//
// Next: kernels/csrc/grouped_gemm.cu
#pragma once

#include "activation.cuh"
#include "ptx.cuh"

namespace tessera {

template <typename T>
struct GroupedArguments {
  const T* x;       // (entries / choices, in)
  int64_t x_stride;
  const T* weight;  // (experts, rows, in), contiguous; rows: out, or with SwiGLU gate and then up, out of each
  const int32_t* order;
  const int32_t* starts;
  T* out;  // (entries, out), contiguous
  int choices, experts, in, out_features, column_tiles;
};

// A tile of a block's product: entries by rows of weights, of which each warp has a part; a stage is one step along k.
template <int Rows, int Columns, int WarpsDown, int WarpsAcross, int Stages, int Blocks>
struct TileShape {
  static constexpr int kRows = Rows, kColumns = Columns, kStages = Stages;
  static constexpr int kWarpsAcross = WarpsAcross, kThreads = WarpsDown * WarpsAcross * kWarpSize;
  static constexpr int kRowsOfWarp = Rows / WarpsDown, kColumnsOfWarp = Columns / WarpsAcross;
  static constexpr int kBlocks = Blocks;  // that registers should leave room for
};

constexpr int kChunks = 8;  // of 16 bytes, in a row of a stage

template <typename T>
constexpr int kStep = kChunks * kVectorLength<T>;  // elements along k in a stage

template <typename T, typename Shape>
constexpr int kStageLength = (Shape::kRows + Shape::kColumns) * kStep<T>;

// Where a chunk lies in a tile: turned by the row, so that eight rows' chunks of one column are in different banks.
template <typename T>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  return row * kStep<T> + (chunk ^ (row % kChunks)) * kVectorLength<T>;
}

// ---- which rows

struct ExpertRows {
  int expert, first, end;  // places in `order`
};

// Finds the tile-th tile of at most `rows` rows of one expert, counting over all experts; an empty one behind the last.
template <int Threads>
__device__ ExpertRows find_expert_rows(const int32_t* starts, int experts, int rows, int tile) {
  SHARED(ExpertRows, found, 1);
  SHARED(int, totals, kWarpSize);
  const int thread = int(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int each = ceil_div(experts, Threads);
  const int from = min(thread * each, experts), to = min(from + each, experts);
  int mine = 0;
  for (int expert = from; expert < to; ++expert) mine += ceil_div(starts[expert + 1] - starts[expert], rows);
  int until = mine;  // tiles up to this thread's last
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int before = __shfl_up_sync(kFullWarp, until, distance);
    if (lane >= distance) until += before;
  }
  if (lane == kWarpSize - 1) totals[warp] = until;
  if (thread == 0) *found = {0, 0, 0};
  __syncthreads();
  for (int other = 0; other < warp; ++other) until += totals[other];
  if (tile >= until - mine && tile < until) {
    int left = tile - (until - mine), expert = from;
    for (int tiles; left >= (tiles = ceil_div(starts[expert + 1] - starts[expert], rows)); ++expert) left -= tiles;
    const int first = starts[expert] + left * rows;
    *found = {expert, first, min(first + rows, starts[expert + 1])};
  }
  __syncthreads();
  return *found;
}

// ---- copies

// Starts copying a chunk of which `left` elements are in the row, zeros behind them; without Vectors, whole chunks may
// straddle the end, and nothing need be aligned.
template <bool Vectors, typename T>
__device__ __forceinline__ void copy_chunk(T* to, const T* from, int left) {
  if constexpr (Vectors) {
    copy_async_16(to, from, left > 0);
  } else {
    for (int i = 0; i < kVectorLength<T>; ++i) to[i] = i < left ? from[i] : from_float<T>(0.0f);
  }
}

// What a thread copies for each stage: the same chunk of every kRowsAtOnce-th row of both tiles.
template <typename T, typename Shape, bool SwiGlu, bool Vectors>
struct TileCopies {
  static constexpr int kRowsAtOnce = Shape::kThreads / kChunks;
  static constexpr int kRowCopies = ceil_div(Shape::kRows, kRowsAtOnce);
  static constexpr int kColumnCopies = Shape::kColumns / kRowsAtOnce;
  static constexpr int kColumnsAtOnce = SwiGlu ? kRowsAtOnce / 2 : kRowsAtOnce;
  static_assert(Shape::kRows % kRowsAtOnce == 0 && Shape::kColumns % kRowsAtOnce == 0, "all threads copy alike");
  static_assert(kRowsAtOnce % 16 == 0, "a step of rows has whole turns of gate and up");

  const T* x[kRowCopies];  // of each row, null where there is none
  const T* weight;
  int row, chunk, columns;  // columns: of the output, from this thread's first to the last

  __device__ TileCopies(const GroupedArguments<T>& a, const int32_t* entries, int expert, int column)
      : row(int(threadIdx.x) / kChunks), chunk(int(threadIdx.x) % kChunks) {
    const int offset = chunk * kVectorLength<T>;
#pragma unroll
    for (int i = 0; i < kRowCopies; ++i) {
      const int entry = entries[row + i * kRowsAtOnce];
      x[i] = entry < 0 ? nullptr : a.x + entry / a.choices * a.x_stride + offset;
    }
    const int mine = column + (SwiGlu ? row / 16 * 8 + row % 8 : row);
    const int64_t rows = SwiGlu ? 2 * int64_t(a.out_features) : a.out_features;
    const int64_t of_expert = SwiGlu && row / 8 % 2 ? a.out_features + mine : mine;
    weight = a.weight + (expert * rows + of_expert) * a.in + offset;
    columns = a.out_features - mine;
  }

  __device__ void start(T* stage, int k, int in) const {
    const int left = in - k - chunk * kVectorLength<T>;
    T* to = stage + chunk_at<T>(row, chunk);
#pragma unroll
    for (int i = 0; i < kRowCopies; ++i)
      copy_chunk<Vectors>(to + i * kRowsAtOnce * kStep<T>, x[i] + k, x[i] ? left : 0);
    to += Shape::kRows * kStep<T>;
#pragma unroll
    for (int i = 0; i < kColumnCopies; ++i)
      copy_chunk<Vectors>(to + i * kRowsAtOnce * kStep<T>, weight + int64_t(i) * kColumnsAtOnce * in + k,
                          i * kColumnsAtOnce < columns ? left : 0);
  }
};

// ---- products

// A warp's part of the tile, in the layout of mma's result: with g = lane / 4 and m = lane % 4, sum[i][j][e] belongs to
// row 16 i + 8 (e / 2) + g and column 8 j + 2 m + e % 2.
template <typename T, typename Shape>
struct WarpProduct {
  static constexpr int kDown = Shape::kRowsOfWarp / 16, kAcross = Shape::kColumnsOfWarp / 8;

  float sum[kDown][kAcross][4] = {};

  // Adds a stage; `row` and `column`: where the warp's part begins.
  __device__ void add(const T* stage, int row, int column) {
    const T* weights = stage + Shape::kRows * kStep<T>;
    const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int k = 0; k < kStep<T> / 16; ++k) {
      uint32_t x[kDown][4], w[kAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i)
        ldmatrix_x4(x[i], stage + chunk_at<T>(row + i * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int j = 0; j < kAcross / 2; ++j)
        ldmatrix_x4(w[j], weights + chunk_at<T>(column + j * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < kDown; ++i)
#pragma unroll
        for (int j = 0; j < kAcross; ++j) {
          const uint32_t operand[2] = {w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16<T>(sum[i][j], x[i], operand);
        }
    }
  }
};

template <typename Shape>
struct WarpProduct<float, Shape> {
  static constexpr int kDown = Shape::kRowsOfWarp / 16, kAcross = Shape::kColumnsOfWarp / 8;

  float sum[kDown][kAcross][4] = {};

  __device__ void add(const float* stage, int row, int column) {
    const float* weights = stage + Shape::kRows * kStep<float>;
    const int group = int(threadIdx.x) % kWarpSize / 4, member = int(threadIdx.x) % 4;
#pragma unroll 1
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      Vector<float, 4> x[kDown * 2];
#pragma unroll
      for (int i = 0; i < kDown * 2; ++i) x[i] = load<4>(stage + chunk_at<float>(row + i * 8 + group, chunk));
#pragma unroll
      for (int j = 0; j < kAcross * 2; ++j) {
        const int at = column + j / 2 * 8 + member * 2 + j % 2;
        const Vector<float, 4> w = load<4>(weights + chunk_at<float>(at, chunk));
#pragma unroll
        for (int i = 0; i < kDown * 2; ++i)
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            float& to = sum[i / 2][j / 2][i % 2 * 2 + j % 2];
            to = fmaf(x[i].at[k], w.at[k], to);
          }
      }
    }
  }
};

// Writes a warp's part, by way of shared memory that is its own, so that rows leave in whole vectors.
template <bool SwiGlu, bool Vectors, typename T, typename Shape>
__device__ void store_product(const GroupedArguments<T>& a, const WarpProduct<T, Shape>& product, T* memory,
                              const int32_t* entries, int column) {
  constexpr int kWidth = SwiGlu ? Shape::kColumnsOfWarp / 2 : Shape::kColumnsOfWarp, kLength = kVectorLength<T>;
  constexpr int kPitch = kWidth + kLength;  // not a multiple of all banks
  constexpr int kTurn = SwiGlu ? 2 : 1;
  static_assert(Shape::kThreads / kWarpSize * Shape::kRowsOfWarp * kPitch <= kStageLength<T, Shape> * Shape::kStages,
                "the stages have room for the results");
  const int lane = int(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < product.kDown; ++i)
#pragma unroll
    for (int j = 0; j < product.kAcross; j += kTurn)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float pair[2] = {product.sum[i][j][2 * half], product.sum[i][j][2 * half + 1]};
        if constexpr (SwiGlu) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            pair[e] *= sigmoid<std::is_same_v<T, float>>(pair[e]) * product.sum[i][j + 1][2 * half + e];
        }
        store_float<2>(memory + (i * 16 + half * 8 + lane / 4) * kPitch + j / kTurn * 8 + lane % 4 * 2, pair);
      }
  __syncwarp();
  constexpr int kPieces = kWidth / kLength;
  for (int piece = lane; piece < Shape::kRowsOfWarp * kPieces; piece += kWarpSize) {
    const int row = piece / kPieces, offset = piece % kPieces * kLength, entry = entries[row];
    if (entry < 0) continue;
    const T* from = memory + row * kPitch + offset;
    T* to = a.out + int64_t(entry) * a.out_features + column + offset;
    const int left = a.out_features - column - offset;
    if constexpr (Vectors) {
      if (left > 0) *reinterpret_cast<Vector<T, kLength>*>(to) = load<kLength>(from);
    } else {
      for (int i = 0; i < min(kLength, left); ++i) to[i] = from[i];
    }
  }
}

// fp32 has longer operands in registers.
template <typename T, typename Shape>
constexpr int kBlocksOf = std::is_same_v<T, float> && Shape::kRows == 128 ? 1 : Shape::kBlocks;

template <typename T, typename Shape, bool SwiGlu, bool Vectors>
__global__ void __launch_bounds__(Shape::kThreads, kBlocksOf<T, Shape>)
    grouped_linear_kernel(const GroupedArguments<T> a) {
  T* memory = dynamic_shared<T>();
  SHARED(int32_t, entries, Shape::kRows);
  const ExpertRows tile =
      find_expert_rows<Shape::kThreads>(a.starts, a.experts, Shape::kRows, int(blockIdx.x / unsigned(a.column_tiles)));
  if (tile.first == tile.end) return;
  const int thread = int(threadIdx.x), warp = thread / kWarpSize;
  for (int row = thread; row < Shape::kRows; row += Shape::kThreads)
    entries[row] = tile.first + row < tile.end ? a.order[tile.first + row] : -1;
  __syncthreads();

  constexpr int kOfWarp = Shape::kColumnsOfWarp, kTurn = SwiGlu ? 2 : 1;
  const int column = int(blockIdx.x % unsigned(a.column_tiles)) * (Shape::kColumns / kTurn);
  const int down = warp / Shape::kWarpsAcross * Shape::kRowsOfWarp, across = warp % Shape::kWarpsAcross * kOfWarp;
  const TileCopies<T, Shape, SwiGlu, Vectors> copies(a, entries, tile.expert, column);
  const auto stage = [&](int step) { return memory + step % Shape::kStages * kStageLength<T, Shape>; };
  const int steps = ceil_div(a.in, kStep<T>);
  for (int step = 0; step < Shape::kStages - 1; ++step) {
    if (step < steps) copies.start(stage(step), step * kStep<T>, a.in);
    commit_copies();
  }
  WarpProduct<T, Shape> product;
  for (int step = 0; step < steps; ++step) {
    wait_copies<Shape::kStages - 2>();
    __syncthreads();  // the stage is there for all, and the one before it has been read by all
    const int next = step + Shape::kStages - 1;
    if (next < steps) copies.start(stage(next), next * kStep<T>, a.in);
    commit_copies();
    product.add(stage(step), down, across);
  }
  __syncthreads();
  constexpr int kWarpLength = Shape::kRowsOfWarp * (kOfWarp / kTurn + kVectorLength<T>);
  store_product<SwiGlu, Vectors>(a, product, memory + warp * kWarpLength, entries + down, column + across / kTurn);
}

}  // namespace tessera
