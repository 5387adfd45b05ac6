// Positions (time, height, width) of a step's tokens, from the segments that they lie in.
//
// A segment is six numbers: `target`, its first token in the step; `count`, its tokens; `base`, its first position;
// `height` and `width` of its grid in tokens, 0 for text; `offset`, how many of its tokens came before the step. Token k
// of text stands at base + k on all axes; token k of an item at base + (k / (height width), k / width mod height,
// k mod width). A decode is text of one token. Tokens before the first or behind the last of the step are left out, so
// a segment that a chunk cuts may be given either whole, its target below zero, or with an offset.
//
// Bytes: 24 a token out; segments are few.
//
// Next: kernels/csrc/mrope_positions.cu
#pragma once

#include "platform.cuh"

namespace tessera {

struct MropeSegment {
  int64_t target, count, base, height, width, offset;
};

// positions: (3, tokens). segments: (count,), ascending by target, apart from each other; tokens of none stand at zero.
static __global__ void __launch_bounds__(128)
    mrope_positions_kernel(const MropeSegment* segments, int count, int64_t* positions, int64_t tokens) {
  const int64_t token = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  int low = -1, high = count;  // the last segment that begins at or before the token
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (segments[middle].target <= token ? low : high) = middle;
  }
  int64_t time = 0, row = 0, column = 0;
  if (low >= 0 && token - segments[low].target < segments[low].count) {
    const MropeSegment segment = segments[low];
    const int64_t k = token - segment.target + segment.offset, area = segment.height * segment.width;
    time = segment.base + (area ? k / area : k);
    row = segment.base + (area ? k / segment.width % segment.height : k);
    column = segment.base + (area ? k % segment.width : k);
  }
  positions[token] = time;
  positions[tokens + token] = row;
  positions[2 * tokens + token] = column;
}

}  // namespace tessera
