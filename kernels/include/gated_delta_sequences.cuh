// The sequences of a step as kernels with a carried state see them: one after the other, each with a slot.
//
// Everything is read on the device, so a launch can be replayed for other sequences. What pads a batch to the size that
// was captured is left out by itself: a sequence without rows does nothing; one with a negative slot, and rows behind
// the last sequence, get zeros and touch no state.
//
// Next: kernels/include/causal_conv.cuh
#pragma once

#include "platform.cuh"

namespace tessera {

struct StateSequences {
  const int64_t* slots;         // (count,); negative: padding
  const int32_t* query_start;   // (count + 1,), first row of each, ascending from 0
  const int32_t* context_lens;  // (count,), tokens of each so far, its new ones counted
  int count;
  int rows;  // of the batch, not fewer than the sequences have
};

struct Segment {
  int first, length;
  int64_t slot;  // negative: rows of nobody
  bool fresh;    // starts from zero, whatever its slot holds
};

// One sequence, or, behind the last one, the rows that belong to none.
__device__ __forceinline__ Segment segment(const StateSequences& sequences, int index) {
  const int first = sequences.query_start[index];
  if (index == sequences.count) return {first, sequences.rows - first, -1, true};
  const int length = sequences.query_start[index + 1] - first;
  return {first, length, sequences.slots[index], sequences.context_lens[index] == length};
}

// The index of the segment that owns a row: the last one that starts at or before it, since those without rows start
// where the next one does. A whole warp calls; each round asks 32 places at once.
__device__ __forceinline__ int find_segment(const StateSequences& sequences, int row) {
  const int lane = int(threadIdx.x) % kWarpSize;
  int low = 0, count = sequences.count + 1;  // it lies in [low, low + count)
  while (count > 1) {
    const int step = ceil_div(count, kWarpSize);
    const bool before = lane * step < count && sequences.query_start[low + lane * step] <= row;
    const int passed = (__popc(__ballot_sync(kFullWarp, before)) - 1) * step;
    low += passed;
    count = count - passed < step ? count - passed : step;
  }
  return low;
}

}  // namespace tessera
