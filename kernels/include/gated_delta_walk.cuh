// The gated delta rule in chunks of 64 tokens, the part that walks: 32 columns of a head's state through a sequence.
//
// A block keeps its columns in registers, fp32, and a copy in shared memory as an operand. For each chunk, with the
// triangles of gated_delta_chunk.cuh:
//   seen = v - answer (K S),   delta = inverse seen,   out = read (Q S) + scores delta,
//   S <- state S + K^T (keep delta)
// with keys and queries as they lie. What a chunk adds to the state has sums of its own: tensor cores cut off what they
// add up.
//
// The next keys are on their way while a chunk is worked on, the next queries as soon as these have been multiplied.
//
// On paper, nothing measured: with key_dim = value_dim = 128 a chunk is 2016 products of 16 x 8 x 8 for a block, 3.2 K
// cycles at the 640 multiply-adds a cycle that mma.sync is said to reach with tf32 on Hopper, and perhaps 2 K more for
// three barriers and the trips between them. One prompt with 32 heads is 128 blocks, one a multiprocessor: 3 us a chunk
// at 1.75 GHz, 0.05 us a token and layer. What chunks do by themselves is some 8 K cycles a block, four blocks a
// multiprocessor: 10 us for 2048 tokens, 0.005 us a token. The recurrent kernel takes 0.18 us (gated_delta.cuh). With
// more prompts two blocks share a multiprocessor, one in its products while the other waits.
//
// A block reads 57 KB a chunk, of which 53 KB serve each of the four slices of a head, and writes 4 KB: 2.4 TB/s, for
// 128 blocks in 3 us, nearly all of the second cache. Through memory go the rows, 64 KB a head and chunk where no heads
// share keys, and what of the triangles' 20 KB, there and back, the second cache does not keep.
//
// Next: kernels/include/gated_delta_operands.cuh
#pragma once

#include "gated_delta_operands.cuh"

namespace tessera {

// Eight warps: of each product, four groups of rows by two halves of the columns.
template <typename T, int Dim>
struct DeltaWalk {
  static constexpr int kThreads = 256, kColumns = 32, kGroups = 4;
  static constexpr int kPitch = kColumns + 4;  // rows 2m apart, as lanes read them, begin 8 banks apart
  static constexpr int kTile = kDeltaChunk * kTileStride<Dim>;
  static constexpr int kStateTiles = Dim / 16 / kGroups;  // of 16 rows
  static constexpr size_t kBytes =
      3 * kTile * sizeof(T) + ((Dim + 2 * kDeltaChunk) * kPitch + kDeltaChunk) * sizeof(float);

  const DeltaChunkArguments<T>& a;
  const int head, column;  // column: first of the warp's 16, of the head
  const int lane, group, half;
  T *keys, *queries;  // two tiles of keys, which take turns, and one of queries
  float *state_rows, *seen, *deltas, *keep;
  float state[kStateTiles][2][4];

  __device__ DeltaWalk(const DeltaChunkArguments<T>& arguments, int of_head, int first_column)
      : a(arguments),
        head(of_head),
        column(first_column + int(threadIdx.x) / kWarpSize % 2 * 16),
        lane(int(threadIdx.x) % kWarpSize),
        group(int(threadIdx.x) / kWarpSize / 2),
        half(int(threadIdx.x) / kWarpSize % 2) {
    keys = dynamic_shared<T>();
    queries = keys + 2 * kTile;
    state_rows = reinterpret_cast<float*>(queries + kTile);
    seen = state_rows + Dim * kPitch;
    deltas = seen + kDeltaChunk * kPitch;
    keep = deltas + kDeltaChunk * kPitch;
  }

  // Calls f(row, column of the head, the two elements there) for what a lane holds of the state.
  template <typename F>
  __device__ __forceinline__ void each_state(F&& f) {
#pragma unroll
    for (int tile = 0; tile < kStateTiles; ++tile)
#pragma unroll
      for (int across = 0; across < 2; ++across)
#pragma unroll
        for (int lower = 0; lower < 2; ++lower)
          f((group * kStateTiles + tile) * 16 + lower * 8 + lane / 4, column + across * 8 + lane % 4 * 2,
            state[tile][across] + 2 * lower);
  }

  __device__ float* state_of(const Segment& part, int row, int at) const {
    const auto& rule = a.rule;
    return rule.states + ((part.slot * rule.heads + head) * rule.key_dim + row) * rule.value_dim + at;
  }

  __device__ void read_state(const Segment& part) {
    each_state([&](int row, int at, float* to) {
      float pair[2] = {};
      if (!part.fresh && row < a.rule.key_dim && at < a.rule.value_dim) load_float<2>(pair, state_of(part, row, at));
      to[0] = pair[0], to[1] = pair[1];
    });
  }

  __device__ void write_state(const Segment& part) {
    each_state([&](int row, int at, const float* from) {
      const float pair[2] = {from[0], from[1]};
      if (row < a.rule.key_dim && at < a.rule.value_dim) store_float<2>(state_of(part, row, at), pair);
    });
  }

  // Makes the state an operand.
  __device__ void share_state() {
    each_state([&](int row, int at, const float* from) {
      const float pair[2] = {from[0], from[1]};
      store_float<2>(state_rows + row * kPitch + at - column + half * 16, pair);
    });
  }

  __device__ void start_copy(T* tile, int64_t of_head, int row, int tokens) const {
    const auto& rule = a.rule;
    copy_tile<T, Dim, kDeltaChunk, kThreads>(tile, rule.qkv + row * rule.qkv_stride + of_head, int(rule.qkv_stride),
                                             tokens, rule.key_dim);
    commit_copies();
  }

  // What the state answers to the warp's 16 keys and as many queries.
  __device__ __forceinline__ void ask(float (&sums)[2][2][4], const T* key_tile) const {
    const T* key_rows = key_tile + group * 16 * kTileStride<Dim> + down_first<Dim>(lane);
    const T* query_rows = queries + group * 16 * kTileStride<Dim> + down_first<Dim>(lane);
#pragma unroll 2
    for (int step = 0; step < Dim / 16; ++step) {
      uint32_t words[2][4];
      ldmatrix_x4(words[0], key_rows + step * 16);
      ldmatrix_x4(words[1], query_rows + step * 16);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint32_t left[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) widen<T>(left[i], words[i][2 * part], words[i][2 * part + 1]);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const float* from =
              state_rows + (step * 16 + part * 8 + lane % 4 * 2) * kPitch + half * 16 + tile * 8 + lane / 4;
          const SplitPair pair(from[0], from[kPitch]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            mma_m16n8k8_tf32(sums[i][tile], left[i], pair.upper);
            mma_m16n8k8_tf32(sums[i][tile], left[i], pair.lower);
          }
        }
      }
    }
  }

  // state <- by * state + keys^T (keep deltas)
  __device__ __forceinline__ void learn(const T* key_tile, float by) {
    float sums[kStateTiles][2][4] = {}, small[kStateTiles][2][4] = {};
    const T* columns = key_tile + across_first<Dim>(lane) + group * kStateTiles * 16;
#pragma unroll 2
    for (int block = 0; block < kDeltaChunk / 16; ++block) {
      uint32_t words[kStateTiles][4];
#pragma unroll
      for (int i = 0; i < kStateTiles; ++i)
        ldmatrix_x4_transposed(words[i], columns + block * 16 * kTileStride<Dim> + i * 16);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int token = block * 16 + part * 8 + lane % 4 * 2;
        uint32_t left[kStateTiles][4];
#pragma unroll
        for (int i = 0; i < kStateTiles; ++i) widen<T>(left[i], words[i][2 * part], words[i][2 * part + 1]);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const float* from = deltas + token * kPitch + half * 16 + tile * 8 + lane / 4;
          const SplitPair pair(keep[token] * from[0], keep[token + 1] * from[kPitch]);
#pragma unroll
          for (int i = 0; i < kStateTiles; ++i) {
            mma_m16n8k8_tf32(sums[i][tile], left[i], pair.upper);
            mma_m16n8k8_tf32(small[i][tile], left[i], pair.lower);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kStateTiles; ++i)
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          state[i][tile][e] = fmaf(by, state[i][tile][e], sums[i][tile][e] + small[i][tile][e]);
  }

  // Calls f(token, column of the head, tile of columns, lower row or not) for the pairs of a lane's sums.
  template <typename F>
  __device__ __forceinline__ void each_pair(F&& f) const {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int lower = 0; lower < 2; ++lower)
        f(group * 16 + lower * 8 + lane / 4, column + tile * 8 + lane % 4 * 2, tile, lower);
  }

  // A pair of a lane's sums to a matrix that the block shares.
  __device__ __forceinline__ void share(float* matrix, int token, int at, const float* from) const {
    const float pair[2] = {from[0], from[1]};
    store_float<2>(matrix + token * kPitch + at - column + half * 16, pair);
  }

  // `by`: of the lane's upper and lower row.
  __device__ __forceinline__ void write_reads(int row, int tokens, const float (&by)[2], const float (&answers)[2][4],
                                              const float (&inside)[2][4]) const {
    const auto& rule = a.rule;
    each_pair([&](int token, int at, int tile, int lower) {
      float pair[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) pair[i] = fmaf(by[lower], answers[tile][2 * lower + i], inside[tile][2 * lower + i]);
      if (token < tokens && at < rule.value_dim)
        store_float<2>(rule.out + (int64_t(row + token) * rule.heads + head) * rule.value_dim + at, pair);
    });
  }

  // Takes the state through the chunk that begins at `row`; `left`: tokens that the sequence has from there on. What it
  // loads is needed a barrier later, and half of it only when the other half has left its registers.
  __device__ __forceinline__ void advance(int row, int left, int turn) {
    const auto& rule = a.rule;
    const int tokens = min(kDeltaChunk, left), thread = int(threadIdx.x);
    const ChunkFactors* factors = a.factors + a.place(head, row);
    TriangleRows triangle;
    triangle.load(a.inverse + a.place(head, row) * kDeltaChunk, group, tokens);
    const T* of_head = rule.qkv + row * rule.qkv_stride + rule.values(head);
    Packed<T, 2> values[2][2];
    float by[2];  // the lane's upper and lower row
    each_pair([&](int token, int at, int tile, int lower) {
      values[tile][lower] = {};
      if (token < tokens && at < rule.value_dim)
        values[tile][lower] = load_packed<2>(of_head + token * rule.qkv_stride + at);
      by[lower] = token < tokens ? factors[token].answer : 0.0f;
    });
    wait_copies<0>();
    __syncthreads();  // tiles and state are there for all; what the chunk before needed has been read by all
    const int next = row + kDeltaChunk, after = left - kDeltaChunk;
    if (after > 0) start_copy(keys + (1 - turn) * kTile, rule.keys(head), next, after);
    float answers[2][2][4] = {}, delta[2][4] = {}, read[2][4] = {};
    ask(answers, keys + turn * kTile);
    each_pair([&](int token, int at, int tile, int lower) {
      float pair[2];
      unpack(pair, values[tile][lower]);
#pragma unroll
      for (int i = 0; i < 2; ++i) pair[i] = fmaf(-by[lower], answers[0][tile][2 * lower + i], pair[i]);
      share(seen, token, at, pair);
    });
    __syncthreads();
    if (after > 0) start_copy(queries, rule.queries(head), next, after);
    triangle.multiply<kPitch>(delta, seen + half * 16, group);
    triangle.load(a.scores + a.place(head, row) * kDeltaChunk, group, tokens);
    const float kept = thread < tokens ? factors[thread].keep : 0.0f;
    each_pair([&](int token, int, int, int lower) { by[lower] = token < tokens ? factors[token].read : 0.0f; });
    each_pair([&](int token, int at, int tile, int lower) {
      share(deltas, token, at, delta[tile] + 2 * lower);
    });
    if (thread < kDeltaChunk) keep[thread] = kept;
    __syncthreads();
    triangle.multiply<kPitch>(read, deltas + half * 16, group);
    write_reads(row, tokens, by, answers[1], read);
    learn(keys + turn * kTile, factors->state);
    share_state();
  }
};

// A block: one sequence, one head, 32 columns of its state.
template <typename T, int Dim>
__global__ void __launch_bounds__(DeltaWalk<T, Dim>::kThreads, 2) delta_walk_kernel(const DeltaChunkArguments<T> a) {
  using Walk = DeltaWalk<T, Dim>;
  const int slices = ceil_div(a.rule.value_dim, Walk::kColumns);
  const int slice = int(blockIdx.x) % slices, head = int(blockIdx.x) / slices % a.rule.heads;
  const Segment part = segment(a.rule.sequences, int(blockIdx.x) / slices / a.rule.heads);
  if (part.slot < 0 || part.length <= a.rule.recurrent_length) return;

  Walk walk(a, head, slice * Walk::kColumns);
  walk.start_copy(walk.keys, a.rule.keys(head), part.first, part.length);
  walk.start_copy(walk.queries, a.rule.queries(head), part.first, part.length);
  walk.read_state(part);
  walk.share_state();
  for (int start = 0; start < part.length; start += kDeltaChunk)
    walk.advance(part.first + start, part.length - start, start / kDeltaChunk % 2);
  walk.write_state(part);
}

}  // namespace tessera
