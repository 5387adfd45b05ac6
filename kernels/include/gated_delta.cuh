// The gated delta rule, token by token: S <- e^g S; d = beta (v - S^T k); S <- S + k d^T; o = S^T q.
//
// Columns of a head's state do not depend on each other. A warp keeps a stripe of them in registers through all tokens
// of a sequence, so the fp32 state moves once in and once out whatever the length: 2 * key_dim * value_dim * 4 bytes a
// head, which is nearly all that a decode moves. What stripes share (unit queries and keys, values, gates) one warp of
// the block stages a few tokens ahead. Since o = e^g S^T q + (k.q) d, both products see the old state, and lanes meet
// once a token.
//
// Rows are summed in sixteen groups and a tree over them, the same for both widths of stripes, with every fused
// multiply-add written out: where a prompt is cut, what else is in the batch, and which width runs change no bit.
//
// Two widths: 32 columns (rows of 128 bytes, 128 registers of state a lane) stream the states of a large batch of
// decodes; 8 columns give a lone prompt four times the warps. On paper, nothing measured: with key_dim = value_dim =
// 128 a token costs such a warp 128 fp32 instructions and one trip through 4 levels of shuffles, about 320 cycles. 32
// heads then are 512 warps, one for each scheduler of 128 multiprocessors: 0.18 us a token and layer at 1.75 GHz for
// one prompt, and about 0.1 us where many sequences keep the schedulers full. On tensor cores, chunks of 64 tokens take
// a third of that (gated_delta_walk.cuh), so long sequences in 16 bits are left to them. But their sums depend on where
// chunks begin, that is, on how a prompt was cut: where batches must change no bit, this kernel takes every sequence.
//
// Next: kernels/include/gated_delta_stage.cuh
#pragma once

#include "gated_delta_stage.cuh"

namespace tessera {

// A warp's stripe: each lane holds four columns of `kInLane` of the groups.
template <int Steps, int Quads>
struct DeltaStripe {
  static constexpr int kRowLanes = kWarpSize / Quads;
  static constexpr int kInLane = kDeltaGroups / kRowLanes;
  // Bits of the lane that choose part (key or query), upper columns, odd column once sums are spread.
  static constexpr int kPart = 8, kUpper = 16, kOdd = Quads == 2 ? 2 : 0, kSpare = Quads == 2 ? 4 : 0;
  static_assert((Quads == 2 && kInLane == 1) || (Quads == 8 && kInLane == 4), "where the bits above lie");

  float state[Steps][kInLane][4][4];  // [step][group][row][column]

  // The first of four rows.
  __device__ static int row(int step, int group) {
    const int lane = int(threadIdx.x) % kWarpSize;
    return 4 * (lane / Quads + kRowLanes * group + kDeltaGroups * step);
  }

  // Calls f(four columns of a row, where they lie) for what the lane holds of a head's state.
  template <typename F>
  __device__ void each(float* head, int key_dim, int value_dim, int column, F&& f) {
#pragma unroll
    for (int step = 0; step < Steps; ++step)
#pragma unroll
      for (int group = 0; group < kInLane; ++group)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = row(step, group) + i;
          f(state[step][group][i], head + int64_t(at) * value_dim + column, at < key_dim);
        }
  }

  template <bool Vectors>
  __device__ void read(float* head, int key_dim, int value_dim, int column, bool fresh) {
    each(head, key_dim, value_dim, column, [&](float(&to)[4], const float* from, bool inside) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = 0.0f;
      if (fresh || !inside || column >= value_dim) return;
      if constexpr (Vectors) {
        load_float<4>(to, from);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + i < value_dim) to[i] = from[i];
      }
    });
  }

  template <bool Vectors>
  __device__ void write(float* head, int key_dim, int value_dim, int column) {
    each(head, key_dim, value_dim, column, [&](float(&from)[4], float* to, bool inside) {
      if (!inside || column >= value_dim) return;
      if constexpr (Vectors) {
        store_float<4>(to, from);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (column + i < value_dim) to[i] = from[i];
      }
    });
  }

  // Sums over the lane's rows: four columns times the key, then times the query.
  __device__ void multiply(const float* key, const float* query, float (&sums)[8]) const {
    float groups[kInLane][8];
#pragma unroll
    for (int group = 0; group < kInLane; ++group) {
#pragma unroll
      for (int i = 0; i < 8; ++i) groups[group][i] = 0.0f;
#pragma unroll
      for (int step = 0; step < Steps; ++step) {
        float keys[4], queries[4];
        load_float<4>(keys, key + row(step, group));
        load_float<4>(queries, query + row(step, group));
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            groups[group][j] = fmaf(state[step][group][i][j], keys[i], groups[group][j]);
            groups[group][4 + j] = fmaf(state[step][group][i][j], queries[i], groups[group][4 + j]);
          }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (kInLane == 4)
        sums[i] = (groups[0][i] + groups[1][i]) + (groups[2][i] + groups[3][i]);
      else
        sums[i] = groups[0][i];
    }
  }

  // One level of the tree: of a pair of lanes each keeps half of the values.
  template <int Count>
  __device__ static void fold(float (&values)[8], int bit) {
    const bool upper = (int(threadIdx.x) & bit) != 0;
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) {
      const float kept = upper ? values[i + Count / 2] : values[i], sent = upper ? values[i] : values[i + Count / 2];
      values[i] = kept + __shfl_xor_sync(kFullWarp, sent, bit);
    }
  }

  // Takes the stripe through one token. `value`: the lane's four; `out`: where the first of them goes, `inside` how many
  // of them exist.
  template <typename T>
  __device__ void advance(const float* key, const float* query, const float* value, const DeltaGates& gates, T* out,
                          int inside) {
    float sums[8], delta[4];
    multiply(key, query, sums);
    fold<8>(sums, kPart);
    fold<4>(sums, kUpper);
    if constexpr (kOdd != 0) {
      fold<2>(sums, kOdd);
      sums[0] += __shfl_xor_sync(kFullWarp, sums[0], kSpare);
    }
    const int lane = int(threadIdx.x) % kWarpSize, quad = lane % Quads;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = quad | (i & 2 ? kUpper : 0) | (i & 1 ? kOdd : 0);
      const float answered = __shfl_sync(kFullWarp, sums[kOdd ? 0 : i & 1], from);
      delta[i] = gates.beta * fmaf(-gates.decay, answered, value[i]);
    }
#pragma unroll
    for (int step = 0; step < Steps; ++step)
#pragma unroll
      for (int group = 0; group < kInLane; ++group) {
        float keys[4];
        load_float<4>(keys, key + row(step, group));
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& at = state[step][group][i][j];
            at = fmaf(keys[i], delta[j], gates.decay * at);
          }
      }
    if (!(lane & kPart) || (lane & kSpare)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool mine = ((i & 2) != 0) == ((lane & kUpper) != 0) && (!kOdd || ((i & 1) != 0) == ((lane & kOdd) != 0));
      const float read = fmaf(gates.match, delta[i], gates.decay * sums[kOdd ? 0 : i & 1]);
      if (mine && i < inside) out[i] = from_float<T>(read);
    }
  }
};

// A block: one segment, one head, kDeltaWarps stripes side by side; one warp stages.
template <typename T, int Steps, int Quads, bool Vectors>
__global__ void __launch_bounds__(DeltaStage<T, Steps, Quads, Vectors>::kThreads, Quads == 2 && Steps <= 2 ? 3 : 2)
    gated_delta_kernel(const GatedDeltaArguments<T> a) {
  using Stage = DeltaStage<T, Steps, Quads, Vectors>;
  const int blocks = ceil_div(a.value_dim, Stage::kColumns);
  const int first_column = int(blockIdx.x) % blocks * Stage::kColumns;
  const int head = int(blockIdx.x) / blocks % a.heads;
  const Segment part = segment(a.sequences, int(blockIdx.x) / blocks / a.heads);
  if (part.length <= 0) return;
  if (part.slot < 0) return clear_reads(a, part, head, first_column, Stage::kColumns);
  if (part.length > a.recurrent_length) return;

  const int warp = int(threadIdx.x) / kWarpSize, lane = int(threadIdx.x) % kWarpSize;
  const bool stages = warp == Stage::kWarp;
  const bool reads = warp < kDeltaWarps && first_column + warp * 4 * Quads < a.value_dim;
  const int column = warp * 4 * Quads + lane % Quads * 4;  // of the block
  const int inside = min(a.value_dim - first_column - column, 4);
  float* states = a.states + (part.slot * a.heads + head) * a.key_dim * a.value_dim;
  const Stage stage(a, part, head, first_column);
  DeltaStripe<Steps, Quads> stripe;
  if (reads) stripe.template read<Vectors>(states, a.key_dim, a.value_dim, first_column + column, part.fresh);
  if (stages) stage.fill(0);
  __syncthreads();
  for (int start = 0; start < part.length; start += Stage::kRun) {
    if (stages && start + Stage::kRun < part.length) stage.fill(start + Stage::kRun);
    if (reads) {
      const int tokens = min(Stage::kRun, part.length - start);
      T* out = a.out + (int64_t(part.first + start) * a.heads + head) * a.value_dim + first_column + column;
      for (int token = 0; token < tokens; ++token, out += int64_t(a.heads) * a.value_dim) {
        float value[4];
        load_float<4>(value, stage.values(start, token) + column);
        stripe.advance(stage.keys(start, token), stage.queries(start, token), value, *stage.gates(start, token), out,
                       inside);
      }
    }
    __syncthreads();
  }
  if (reads) stripe.template write<Vectors>(states, a.key_dim, a.value_dim, first_column + column);
}

}  // namespace tessera
