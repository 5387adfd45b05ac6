// Items of all sizes side by side: which of them a row belongs to, and where in its grid a patch lies.
//
// Tables are on the device and have `width` numbers an item, the first of which is its first row. Items come in order;
// entries that are not used begin at or behind the last row and are empty, so a captured launch takes any batch.
//
// Next: kernels/include/patchify.cuh
#pragma once

#include "platform.cuh"

namespace tessera {

// The last item that begins at or before the row, -1 where none does. The whole warp asks, for one row.
__device__ __forceinline__ int find_item(const int64_t* table, int width, int count, int64_t row) {
  int found = 0;
  for (int first = 0; first < count; first += kWarpSize) {
    const int mine = first + int(threadIdx.x) % kWarpSize;
    const unsigned before = __ballot_sync(kFullWarp, mine < count && table[int64_t(mine) * width] <= row);
    found += __popc(before);
    if (before != kFullWarp) break;
  }
  return found - 1;
}

// The same for a row behind one whose item is known.
__device__ __forceinline__ int next_item(const int64_t* table, int width, int count, int item, int64_t row) {
  while (item + 1 < count && table[int64_t(item + 1) * width] <= row) ++item;
  return item;
}

// A patch in its item's grid of height x width patches; `inside` tells whether the row is an item's at all.
struct PatchPlace {
  bool inside;
  unsigned time, row, column;
};

// Row `index` of an item whose patches come in merge order: (time, block row, block column, row, column in the block).
__device__ __forceinline__ PatchPlace place_patch(int64_t index, int64_t times, unsigned height, unsigned width,
                                                  unsigned merge) {
  const unsigned frame = height * width;
  if (index >= times * frame) return {false, 0, 0, 0};
  const unsigned within = unsigned(index) % frame, block = within / (merge * merge), member = within % (merge * merge);
  const unsigned blocks = width / merge;
  return {true, unsigned(index) / frame, block / blocks * merge + member / merge,
          block % blocks * merge + member % merge};
}

}  // namespace tessera
