// Causal depthwise convolution and SiLU over sequences that carry their last inputs from step to step.
//
// Two kinds of blocks share a launch, so that prefill and decode are one and nothing waits for anything:
// - a *head* takes a sequence's first taps - 1 rows, whose windows reach into the carried inputs, and is the only one to
//   touch the sequence's slot: it reads it first and writes the newest inputs last. A decode is a head and no more;
// - a *tile* takes kTileRows neighbouring rows, less those of heads. It reads taps - 1 rows more than it writes, which
//   the tile before it has just brought into the second cache.
// Sums run over the taps in the same order in both, so where a prompt is cut changes no bit.
//
// Bytes: each row in and out once, and (taps - 1) * channels in and out for each sequence; the least there is.
//
// Next: kernels/csrc/causal_conv.cu
#pragma once

#include "activation.cuh"
#include "gated_delta_sequences.cuh"

namespace tessera {

constexpr int kTileRows = 8;  // with 3 rows before them: 11 independent loads a thread

template <typename T>
struct CausalConvArguments {
  const T* x;  // (rows, channels)
  int64_t x_stride;
  const T* weight;  // (taps, channels), the newest input's last
  T* states;        // (slots, channels, taps - 1), oldest first
  T* out;           // (rows, channels), contiguous
  StateSequences sequences;
  int channels;
};

// A thread's part: N neighbouring channels.
template <typename T, int N, int Taps>
struct ConvChannels {
  static constexpr int kCarried = Taps - 1;
  using Inputs = Vector<T, N>;

  const CausalConvArguments<T>& a;
  const int channel;
  float weight[Taps][N];

  __device__ ConvChannels(const CausalConvArguments<T>& arguments, int first) : a(arguments), channel(first) {
#pragma unroll
    for (int tap = 0; tap < Taps; ++tap) load_float<N>(weight[tap], a.weight + int64_t(tap) * a.channels + channel);
  }

  __device__ Inputs input(int row) const { return load<N>(a.x + row * a.x_stride + channel); }

  __device__ void write(int row, const float (&values)[N]) const {
    store_float<N>(a.out + int64_t(row) * a.channels + channel, values);
  }

  // The row whose window is window[0] (oldest) to window[Taps - 1].
  __device__ void convolve(const Inputs* window, int row) const {
    float sum[N];
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = 0.0f;
#pragma unroll
    for (int tap = 0; tap < Taps; ++tap) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] = fmaf(to_float(window[tap].at[i]), weight[tap][i], sum[i]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] *= sigmoid<kExact<T>>(sum[i]);
    write(row, sum);
  }

  __device__ T* state(const Segment& part) const {
    return a.states + (part.slot * a.channels + channel) * kCarried;
  }

  // N * kCarried elements lie side by side, channel by channel; to[tap] is the input that is Taps - 1 - tap back.
  __device__ void read_state(const Segment& part, Inputs* to) const {
    Inputs packed[kCarried];
#pragma unroll
    for (int i = 0; i < kCarried; ++i) packed[i] = load<N>(state(part) + i * N);
#pragma unroll
    for (int at = 0; at < N * kCarried; ++at) to[at % kCarried].at[at / kCarried] = packed[at / N].at[at % N];
  }

  __device__ void write_state(const Segment& part, const Inputs* from) const {
    Inputs packed[kCarried];
#pragma unroll
    for (int at = 0; at < N * kCarried; ++at) packed[at / N].at[at % N] = from[at % kCarried].at[at / kCarried];
#pragma unroll
    for (int i = 0; i < kCarried; ++i) *reinterpret_cast<Inputs*>(state(part) + i * N) = packed[i];
  }

  // The first rows of a sequence, and its slot.
  __device__ void head(const Segment& part) const {
    Inputs line[2 * kCarried];  // carried inputs, then the first new ones
    if (!part.fresh) read_state(part, line);
#pragma unroll
    for (int i = 0; i < kCarried; ++i) {
      if (i < part.length) line[kCarried + i] = input(part.first + i);
      if (!part.fresh) continue;
#pragma unroll
      for (int j = 0; j < N; ++j) line[i].at[j] = from_float<T>(0.0f);
    }
    Inputs newest[kCarried];
#pragma unroll
    for (int i = 0; i < kCarried; ++i) {
      newest[i] = line[i];
      if (part.length >= kCarried) newest[i] = input(part.first + part.length - kCarried + i);
#pragma unroll
      for (int length = 1; length < kCarried; ++length)
        if (length == part.length) newest[i] = line[length + i];
    }
    write_state(part, newest);
#pragma unroll
    for (int i = 0; i < kCarried; ++i)
      if (i < part.length) convolve(line + i, part.first + i);
  }

  // Rows [from, to), at most kTileRows, whose windows lie in the sequence.
  __device__ void body(int from, int to) const {
    if (from >= to) return;
    Inputs inputs[kTileRows + kCarried];
#pragma unroll
    for (int i = 0; i < kTileRows + kCarried; ++i)
      if (from - kCarried + i < to) inputs[i] = input(from - kCarried + i);
#pragma unroll
    for (int i = 0; i < kTileRows; ++i)
      if (from + i < to) convolve(inputs + i, from + i);
  }

  // Rows [first, last), of whichever sequences; `index`: the segment that owns the first.
  __device__ void tile(int first, int last, int index) const {
    for (; index <= a.sequences.count; ++index) {
      const Segment part = segment(a.sequences, index);
      if (part.first >= last) break;
      const int end = min(part.first + part.length, last);
      if (part.slot >= 0) {
        body(max(part.first + kCarried, first), end);
        continue;
      }
      const float zeros[N] = {};
      for (int row = max(part.first, first); row < end; ++row) write(row, zeros);
    }
  }
};

// Blocks of channels are neighbours; then come heads, one a sequence, then tiles.
template <typename T, int N, int Taps>
__global__ void __launch_bounds__(128, 3) causal_conv_kernel(const CausalConvArguments<T> a) {
  const int channel_blocks = ceil_div(a.channels, int(blockDim.x) * N);
  const int work = int(blockIdx.x) / channel_blocks;
  const int channel = (int(blockIdx.x) % channel_blocks * int(blockDim.x) + int(threadIdx.x)) * N;
  const int first = (work - a.sequences.count) * kTileRows;
  const int index = first < 0 ? work : find_segment(a.sequences, first);
  if (channel >= a.channels) return;
  const ConvChannels<T, N, Taps> channels(a, channel);
  if (first >= 0) return channels.tile(first, min(first + kTileRows, a.sequences.rows), index);
  const Segment part = segment(a.sequences, index);
  if (part.length > 0 && part.slot >= 0) channels.head(part);
}

}  // namespace tessera
