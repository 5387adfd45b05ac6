// Which rows a block works on, where rows belong to segments whose lengths only the device knows.
//
// A grid of row_tile_limit blocks covers any segments: segment s has the tiles from starts[s] / Height + s on, which is
// always enough for it, since a segment is cut into at most one tile more than the Heights that end in it. So no prefix
// sum of tiles is needed, and the launch needs neither the lengths nor their largest: it can be captured. A block too
// many finds no rows.
//
// Next: kernels/include/segment_attention.cuh
#pragma once

#include "platform.cuh"

namespace tessera {

// First row of each segment and, last, the end: (segments + 1,), non-decreasing from 0 to at most `rows`.
struct SegmentStarts {
  const void* data;
  bool wide;  // int64, else int32
  int segments;
  int rows;   // of all segments and of what lies behind the last

  // Kept inside the rows, so that wrong starts read and write nothing else.
  __device__ __forceinline__ int at(int segment) const {
    const int64_t start =
        wide ? static_cast<const int64_t*>(data)[segment] : static_cast<const int32_t*>(data)[segment];
    return int(max(int64_t(0), min(start, int64_t(rows))));
  }
};

struct RowTile {
  int segment;  // `segments` for rows behind the last segment
  int start;    // of the segment, and its end
  int end;
  int first;    // of the tile's rows; at or beyond `end`: none
};

__host__ __device__ constexpr int64_t row_tile_limit(int64_t rows, int64_t segments, int height) {
  return rows / height + segments + 1;
}

// The tile of rows of this number, `Height` of them unless the segment ends. A whole warp calls it.
template <int Height>
__device__ __forceinline__ RowTile find_row_tile(const SegmentStarts& starts, int number) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const auto first_tile = [&](int segment) { return starts.at(segment) / Height + segment; };
  int segment = 0;  // the last whose first tile is not beyond `number` lies here or up to `count` - 1 further
  for (int count = starts.segments + 1; count > 1;) {
    const int step = ceil_div(count, kWarpSize);
    const bool reached = lane * step < count && (lane == 0 || first_tile(segment + lane * step) <= number);
    const int skipped = (__popc(__ballot_sync(kFullWarp, reached)) - 1) * step;
    segment += skipped;
    count = min(step, count - skipped);
  }
  RowTile tile;
  tile.segment = segment;
  tile.start = starts.at(segment);
  tile.end = segment < starts.segments ? starts.at(segment + 1) : starts.rows;
  tile.first = tile.start + (number - first_tile(segment)) * Height;
  return tile;
}

}  // namespace tessera
