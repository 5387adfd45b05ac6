// Rows times packed weights, panel by panel: what the plain and the grouped linear layers share.
//
// Packed weight: panels of 16 output rows, each [in_features][16]. With a gated activation, panels of gate rows and up
// rows alternate, so that one thread has both at hand.
//
// Next: kernels/csrc/cpu/linear.cpp

#pragma once

#include <algorithm>

#include "tile.h"

namespace tessera {

constexpr int kAhead = 1024;  // floats: 512 leave memory waiting, 4096 fill the cache with what is not needed yet
constexpr long kDepthAtOnce = kLanes == kPanel ? 128 : 256;  // k of a weight block that stays in the first cache

// Rows of x in blocks of equal height (as far as they go), each block [in_features][height].
struct PackedRows {
  long rows, depth, blocks;
  float* data;

  PackedRows(long rows, long depth, float* data)
      : rows(rows), depth(depth), blocks((rows + kMaxTileRows - 1) / kMaxTileRows), data(data) {}

  long begin(long block) const { return rows * block / blocks; }
  int height(long block) const { return int(begin(block + 1) - begin(block)); }

  // row(i): where row i lies.
  template <typename Row>
  void pack(long block, Row row) const {
    const long first = begin(block);
    const int count = height(block);
    float* to = data + first * depth;
    for (int i = 0; i < count; ++i) {
      const float* from = row(first + i);
      for (long k = 0; k < depth; ++k) to[k * count + i] = from[k];
    }
  }

  Packed at(long block, long k) const {
    const int count = height(block);
    return {data + begin(block) * depth + k * count};
  }
};

// Two panels at once for one or two rows, each sum one chain over k: what `tile` does with kFixedOrder, but with twice
// as many chains under way, where a vector is half a panel and two of them would wait for their additions.
template <int MR>
static inline void tile_pair(Packed a, const float* b0, const float* b1, long depth, float* c0, float* c1,
                             bool accumulate) {
  constexpr int kVectors = kPanel / kLanes;
  vfloat sum[MR][2][kVectors] = {};
  for (long k = 0; k < depth; ++k) {
    __builtin_prefetch(b0 + k * kPanel + kAhead);
    __builtin_prefetch(b1 + k * kPanel + kAhead);
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const vfloat left = load(b0 + k * kPanel + v * kLanes), right = load(b1 + k * kPanel + v * kLanes);
#pragma GCC unroll 2
      for (int row = 0; row < MR; ++row) {
        const vfloat value = splat(a.template at<MR>(row, k));
        sum[row][0][v] += value * left;
        sum[row][1][v] += value * right;
      }
    }
  }
  for (int row = 0; row < MR; ++row)
    for (int v = 0; v < kVectors; ++v) {
      float *to0 = c0 + row * kPanel + v * kLanes, *to1 = c1 + row * kPanel + v * kLanes;
      store(to0, accumulate ? load(to0) + sum[row][0][v] : sum[row][0][v]);
      store(to1, accumulate ? load(to1) + sum[row][1][v] : sum[row][1][v]);
    }
}

// sums[half][row][16] = x times the panels at `weight` (one or two).
//
// kFixedOrder: a row's sums are taken in the same order however many rows there are; else in whichever is fastest.
template <bool kFixedOrder>
static inline void multiply_panels(const PackedRows& x, const float* weight, int panels, float* sums) {
  const long depth = x.depth, half = x.rows * kPanel;
  const long step = x.blocks == 1 && !kFixedOrder ? depth : kDepthAtOnce;
  for (long k = 0; k < depth; k += step) {
    const long count = std::min(step, depth - k);
    if (kLanes == kPanel) {
      const float* b0 = weight + k * kPanel;
      const float* b1 = panels == 2 ? b0 + depth * kPanel : b0;
      for (long block = 0; block < x.blocks; ++block) {
        float* c = sums + x.begin(block) * kPanel;
        run_tile<kAhead, kFixedOrder>(x.height(block), x.at(block, k), b0, b1, kPanel, count, c, c + half, kPanel,
                                      k > 0);
      }
    } else if (kFixedOrder && panels == 2 && x.rows <= 2) {
      const float* b = weight + k * kPanel;
      (x.rows == 1 ? tile_pair<1> : tile_pair<2>)(x.at(0, k), b, b + depth * kPanel, count, sums, sums + half, k > 0);
    } else {
      for (int panel = 0; panel < panels; ++panel) {
        const float* b = weight + (panel * depth + k) * kPanel;
        for (long block = 0; block < x.blocks; ++block) {
          float* c = sums + panel * half + x.begin(block) * kPanel;
          run_tile<kAhead, kFixedOrder>(x.height(block), x.at(block, k), b, b + kLanes, kPanel, count, c, c + kLanes,
                                        kPanel, k > 0);
        }
      }
    }
  }
}

static inline void write_lanes(float* to, const float* from, long count) {
  if (count >= kPanel)
    std::memcpy(to, from, kPanel * sizeof(float));
  else
    std::memcpy(to, from, count * sizeof(float));
}

// A panel of gates and one of ups: silu(gate) * up.
static inline void finish_gated(float* sums, long rows, float* out, long out_stride, long columns) {
  for (long row = 0; row < rows; ++row) {
    float* gate = sums + row * kPanel;
    const float* up = gate + rows * kPanel;
    for (int lane = 0; lane < kPanel; lane += kLanes)
      store(gate + lane, silu(load(gate + lane)) * load(up + lane));
    write_lanes(out + row * out_stride, gate, columns);
  }
}

}  // namespace tessera
