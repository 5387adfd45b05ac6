// Mixture of experts, around the products: which experts a token chooses, its rows sorted by expert, and their answers
// added up.
//
// A choice of a token is an *entry*, token * choices + choice: entries are what is sorted, and answers lie in their
// order.
//
// What moves: choosing reads the logits and writes 8 bytes a choice. Sorting reads the choices (4 bytes each) twice for
// each expert, from the second cache, which for a few hundred experts is some percent of the time of their products; it
// takes one launch, no atomics, and no count that the host would wait for. Adding up reads every answer once and writes
// a row a token.
//
// Next: kernels/csrc/moe_routing.cu
#pragma once

#include "activation.cuh"
#include "reduce.cuh"

namespace tessera {

constexpr float kTiny = 1e-20f;  // keeps a sum of weights that all vanish from dividing by zero

// ---- choosing

template <typename T>
struct RoutingArguments {
  const T* logits;
  int64_t logits_stride;
  const float* bias;  // (experts,), added to the scores for the choice alone; or null
  int32_t* chosen;    // (rows, choices)
  float* weights;     // (rows, choices)
  int64_t rows;
  int experts, choices;
  int groups, top_groups;  // equal runs of experts, and how many of them a token may choose from
  bool within_groups;      // instead: as many choices from each group, group by group
  bool sigmoid;            // else the softmax over all experts
  bool normalise;
  float scale;
};

// Integers in the order of floats, NaN above all others as torch sorts it; never 0, which stands for nothing.
__device__ __forceinline__ uint32_t order_key(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// The scores of a token, in the registers of a warp: lane l holds experts [l * PerLane, (l + 1) * PerLane), so that of
// equal keys the lowest lane, and in it the first element, is the lowest expert.
template <int PerLane>
struct WarpScores {
  struct Best {
    uint32_t key;
    int expert;
    float score;
  };

  float score[PerLane];
  uint32_t key[PerLane];

  static __device__ int first() { return int(threadIdx.x) % kWarpSize * PerLane; }

  // Bits of this lane's elements among experts [from, to).
  static __device__ uint32_t members(int from, int to) {
    const int low = min(max(from - first(), 0), PerLane), high = min(max(to - first(), 0), PerLane);
    return ((1u << high) - 1) & ~((1u << low) - 1);
  }

  // Takes the best of the open elements out, for all lanes alike.
  __device__ Best take(uint32_t& open) const {
    uint32_t best = 0;
    int at = 0;
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      if (!(open >> i & 1) || key[i] <= best) continue;
      best = key[i];
      mine = score[i];
      at = i;
    }
    const uint32_t most = __reduce_max_sync(kFullWarp, best);
    const int winner = __ffs(int(__ballot_sync(kFullWarp, best == most))) - 1;
    if (int(threadIdx.x) % kWarpSize == winner) open &= ~(1u << at);
    return {most, __shfl_sync(kFullWarp, first() + at, winner), __shfl_sync(kFullWarp, mine, winner)};
  }

  // Fills in both from the logits of the row; N elements at a time.
  template <int N, typename T>
  __device__ void read(const RoutingArguments<T>& a, const T* logits) {
    float most = Max::kNeutral, total = 0.0f;
#pragma unroll
    for (int i = 0; i < PerLane; i += N) {
      float part[N];
#pragma unroll
      for (int j = 0; j < N; ++j) part[j] = 0.0f;
      if (first() + i < a.experts) load_float<N>(part, logits + first() + i);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        score[i + j] = part[j];
        if (first() + i + j < a.experts) most = fmaxf(most, part[j]);
      }
    }
    if (!a.sigmoid) most = reduce_warp<Max>(most);
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      const bool inside = first() + i < a.experts;
      score[i] = a.sigmoid ? sigmoid<true>(score[i]) : inside ? expf(score[i] - most) : 0.0f;
      total += score[i];
    }
    const float factor = a.sigmoid ? 1.0f : 1.0f / reduce_warp<Sum>(total);
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
      score[i] *= factor;
      key[i] = order_key(a.bias && first() + i < a.experts ? score[i] + a.bias[first() + i] : score[i]);
    }
  }

  // Bits of this lane's elements in the best groups; a group counts as much as its two best together.
  __device__ uint32_t best_groups(int experts, int groups, int top_groups) const {
    const int size = experts / groups, lane = int(threadIdx.x) % kWarpSize;
    uint32_t mine = 0;  // lane g keeps the key of group g
    for (int group = 0; group < groups; ++group) {
      uint32_t open = members(group * size, (group + 1) * size);
      const float best = value_of_key(take(open).key);
      const float sum = best + value_of_key(take(open).key);
      if (lane == group) mine = order_key(sum);
    }
    uint32_t open = 0;
    for (int count = 0; count < top_groups; ++count) {
      const uint32_t most = __reduce_max_sync(kFullWarp, mine);
      const int winner = __ffs(int(__ballot_sync(kFullWarp, mine == most))) - 1;
      open |= members(winner * size, (winner + 1) * size);
      if (lane == winner) mine = 0;
    }
    return open;
  }
};

// A warp chooses for a token.
template <typename T, int PerLane, int N>
__global__ void choose_experts_kernel(const RoutingArguments<T> a) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t row = int64_t(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
  if (row >= a.rows) return;  // a whole warp, and warps do not meet
  WarpScores<PerLane> scores;
  scores.template read<N>(a, a.logits + row * a.logits_stride);
  const bool limited = !a.within_groups && a.top_groups < a.groups;
  uint32_t open = limited ? scores.best_groups(a.experts, a.groups, a.top_groups) : scores.members(0, a.experts);
  const int size = a.experts / a.groups, of_group = max(a.choices / a.groups, 1);
  int expert = 0;
  float weight = 0.0f, total = 0.0f;
  for (int choice = 0; choice < a.choices; ++choice) {
    if (a.within_groups && choice % of_group == 0)
      open = scores.members(choice / of_group * size, (choice / of_group + 1) * size);
    const auto best = scores.take(open);
    total += best.score;
    if (lane != choice) continue;
    expert = best.expert;
    weight = best.score;
  }
  if (lane >= a.choices) return;
  a.chosen[row * a.choices + lane] = expert;
  a.weights[row * a.choices + lane] = (a.normalise ? weight / (total + kTiny) : weight) * a.scale;
}

// ---- sorting

// Sums of two counts over a warp.
__device__ __forceinline__ void count_warp(int& a, int& b) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    a += __shfl_xor_sync(kFullWarp, a, distance);
    b += __shfl_xor_sync(kFullWarp, b, distance);
  }
}

// A block finds the entries of its expert, in order: it counts those of earlier experts, which come before them, and
// each of its warps writes those of its own run of entries behind what earlier warps found. `order`: entries by expert;
// `starts`: (experts + 1,), where each expert's begin in it.
__global__ void sort_by_expert_kernel(const int32_t* chosen, int entries, int experts, int32_t* order,
                                      int32_t* starts) {
  SHARED(int32_t, before, kWarpSize);
  SHARED(int32_t, found, kWarpSize);
  const int expert = int(blockIdx.x), lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int warps = int(blockDim.x) / kWarpSize;
  const int run = ceil_div(ceil_div(entries, warps), kWarpSize) * kWarpSize;
  const int begin = min(warp * run, entries), end = min(begin + run, entries);
  int below = 0, equal = 0;
#pragma unroll 4
  for (int entry = begin + lane; entry < end; entry += kWarpSize) {
    const int32_t id = chosen[entry];
    below += id < expert;
    equal += id == expert;
  }
  count_warp(below, equal);
  if (lane == 0) before[warp] = below;
  if (lane == 0) found[warp] = equal;
  __syncthreads();
  int start = 0, position = 0, total = 0;
  for (int other = 0; other < warps; ++other) {
    start += before[other];
    if (other < warp) position += found[other];
    total += found[other];
  }
  if (threadIdx.x == 0) starts[expert] = start;
  if (threadIdx.x == 0 && expert == experts - 1) starts[experts] = start + total;
  if (equal == 0) return;  // the whole warp, and there is no barrier behind
  position += start;
#pragma unroll 4
  for (int first = begin; first < end; first += kWarpSize) {
    const bool mine = first + lane < end && chosen[first + lane] == expert;
    const unsigned all = __ballot_sync(kFullWarp, mine);
    if (mine) order[position + __popc(all & ((1u << lane) - 1))] = first + lane;
    position += __popc(all);
  }
}

// ---- adding up

template <typename T>
struct CombineArguments {
  const T* answers;      // (rows * choices, hidden), contiguous
  const float* weights;  // (rows, choices)
  const T* shared;       // (rows, hidden), what the shared expert answers; or null
  int64_t shared_stride;
  const T* gate;         // one logit a row, by whose sigmoid it counts; or null: it counts in full
  int64_t gate_stride;
  T* out;                // (rows, hidden), contiguous
  int choices, hidden, blocks_per_row;
};

template <typename T, int N>
__global__ void combine_experts_kernel(const CombineArguments<T> a) {
  constexpr int kAtOnce = 4;  // answers that are under way together
  const int64_t row = blockIdx.x / a.blocks_per_row;
  const int column = int((blockIdx.x % a.blocks_per_row) * blockDim.x + threadIdx.x) * N;
  if (column >= a.hidden) return;
  const T* answers = a.answers + row * a.choices * a.hidden + column;
  const float* weights = a.weights + row * a.choices;
  float sum[N];
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] = 0.0f;
  for (int first = 0; first < a.choices; first += kAtOnce) {
    float answer[kAtOnce][N];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j < a.choices) load_float<N>(answer[j], answers + int64_t(first + j) * a.hidden);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j >= a.choices) continue;
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] = fmaf(weights[first + j], answer[j][i], sum[i]);
    }
  }
  if (a.shared) {
    const float factor = a.gate ? sigmoid<true>(to_float(a.gate[row * a.gate_stride])) : 1.0f;
    float shared[N];
    load_float<N>(shared, a.shared + row * a.shared_stride + column);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = fmaf(factor, shared[i], sum[i]);
  }
  store_float<N>(a.out + row * a.hidden + column, sum);
}

}  // namespace tessera
