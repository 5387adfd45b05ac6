// Time series: normalised channel by channel, and cut into overlapping patches that a convolution embeds.
//
// What moves: normalising reads samples twice and writes them once. Embedding writes its rows, which are hundreds of
// times what it reads: patches are never copied out of their series, nor is what the kernel sees of them. A thread
// keeps weights, bias and positions of its columns in registers for all patches of its block.
//
// Next: kernels/csrc/series.cu
#pragma once

#include "items.cuh"
#include "vector.cuh"

namespace tessera {

// ---- normalisation

constexpr int kSeriesThreads = 256;
constexpr int kMostLanes = 32;  // channels that a block takes side by side

struct SeriesShape {
  int64_t length;
  int channels;
  int lanes;  // threads over channels, a power of two; the others go along the series
  int channel_blocks;
};

// A thread's channel and its place among those that share it.
struct SeriesPlace {
  int channel, slot, slots;
  int64_t block;  // along the series
};

__device__ __forceinline__ SeriesPlace series_place(const SeriesShape& shape) {
  const int lane = int(threadIdx.x) % shape.lanes;
  return {int(blockIdx.x % unsigned(shape.channel_blocks)) * shape.lanes + lane, int(threadIdx.x) / shape.lanes,
          kSeriesThreads / shape.lanes, int64_t(blockIdx.x / unsigned(shape.channel_blocks))};
}

// Sums over the threads of a channel, in a fixed order; `scratch`: two numbers a thread.
__device__ __forceinline__ void add_up(double& first, double& second, double* scratch, int lanes) {
  const int thread = int(threadIdx.x);
  scratch[thread] = first;
  scratch[kSeriesThreads + thread] = second;
  for (int half = kSeriesThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (thread >= half) continue;
    scratch[thread] += scratch[thread + half];
    scratch[kSeriesThreads + thread] += scratch[kSeriesThreads + thread + half];
  }
  __syncthreads();
  first = scratch[thread % lanes];
  second = scratch[kSeriesThreads + thread % lanes];
  __syncthreads();
}

// partial: (blocks, channels, 2), sums and sums of squares over `rows` samples each, of what a sample exceeds the
// channel's first by; so a constant channel has none, and a mean far from zero costs few digits.
__global__ void series_sums_kernel(const float* samples, SeriesShape shape, int64_t rows, double* partial) {
  SHARED(double, scratch, 2 * kSeriesThreads);
  const SeriesPlace place = series_place(shape);
  double sum = 0, squares = 0;
  if (place.channel < shape.channels) {
    const double origin = samples[place.channel];
    const int64_t end = min((place.block + 1) * rows, shape.length);
#pragma unroll 8
    for (int64_t row = place.block * rows + place.slot; row < end; row += place.slots) {
      const double above = double(samples[row * shape.channels + place.channel]) - origin;
      sum += above;
      squares += above * above;
    }
  }
  add_up(sum, squares, scratch, shape.lanes);
  if (place.slot || place.channel >= shape.channels) return;
  double* out = partial + (place.block * shape.channels + place.channel) * 2;
  out[0] = sum;
  out[1] = squares;
}

// out: (used, channels), each channel less its mean, divided by its deviation and `spread`.
template <typename T>
__global__ void normalise_series_kernel(const float* samples, SeriesShape shape, const double* partial, int partials,
                                        int64_t rows, int64_t used, double spread, T* out) {
  SHARED(double, scratch, 2 * kSeriesThreads);
  const SeriesPlace place = series_place(shape);
  const bool inside = place.channel < shape.channels;
  double sum = 0, squares = 0;
  for (int block = place.slot; inside && block < partials; block += place.slots) {
    sum += partial[(int64_t(block) * shape.channels + place.channel) * 2];
    squares += partial[(int64_t(block) * shape.channels + place.channel) * 2 + 1];
  }
  add_up(sum, squares, scratch, shape.lanes);
  if (!inside) return;
  const double origin = samples[place.channel], mean = sum / double(shape.length);
  const double variance = max(squares / double(shape.length) - mean * mean, 0.0);
  const double scale = 1.0 / (sqrt(variance) + spread);
  const int64_t end = min((place.block + 1) * rows, used);
#pragma unroll 8
  for (int64_t row = place.block * rows + place.slot; row < end; row += place.slots) {
    const int64_t at = row * shape.channels + place.channel;
    out[at] = from_float<T>(float((double(samples[at]) - origin - mean) * scale));
  }
}

// ---- patches

constexpr int kSeriesWidth = 4;  // first patch, first sample, length, channels
constexpr int kTaps = 5;  // of the convolution
constexpr int kPatchesAtOnce = 32;  // of a block

template <typename T>
struct SeriesArguments {
  const T* samples;       // series back to back, (length, channels) each
  const int64_t* series;  // (count, kSeriesWidth); patches of all channels are counted, those of a place side by side
  int count;
  int64_t first, patches;  // those that are embedded
  int stride;              // samples; a patch is twice as long
  const T* kernel;         // (width, kTaps)
  const T* bias;           // (width,)
  const T* positions;      // (2 * stride or more, width)
  T* out;                  // (patches * 2 * stride, width)
  int width;
  int positions_at_once, tiles;  // a block takes one of `tiles` ranges of positions of its patches
  int threads_across;            // of columns
};

// What a block sees of its patches, positions_at_once + kTaps - 1 samples each: zeros beyond a patch and its series.
template <typename T>
__device__ __forceinline__ void stage_windows(float* seen, const SeriesArguments<T>& a, int64_t begin, int patches,
                                              int position) {
  const int item = find_item(a.series, kSeriesWidth, a.count, a.first + begin);
  const int wide = a.positions_at_once + kTaps - 1, length = 2 * a.stride;
  for (int index = int(threadIdx.x); index < patches * wide; index += int(blockDim.x)) {
    const int64_t patch = a.first + begin + index / wide;
    const int at = position + index % wide - kTaps / 2;
    const int mine = next_item(a.series, kSeriesWidth, a.count, item, patch);
    float sample = 0.0f;
    if (mine >= 0 && at >= 0 && at < length) {
      const int64_t* about = a.series + int64_t(mine) * kSeriesWidth;
      const unsigned channels = unsigned(about[3]), within = unsigned(patch - about[0]);
      const int64_t row = int64_t(within / channels) * a.stride + at;
      if (row < about[2]) sample = to_float(a.samples[about[1] + row * channels + within % channels]);
    }
    seen[index] = sample;
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kSeriesThreads) series_patches_kernel(const SeriesArguments<T> a) {
  float* seen = dynamic_shared<float>();
  const int64_t block = blockIdx.x / unsigned(a.tiles), begin = block * kPatchesAtOnce;
  const int tile = int(blockIdx.x % unsigned(a.tiles)), length = 2 * a.stride;
  const int patches = int(min(int64_t(kPatchesAtOnce), a.patches - begin)), first = tile * a.positions_at_once;
  stage_windows(seen, a, begin, patches, first);
  __syncthreads();
  // Threads side by side take a row's columns; then come positions, then patches, those left over having no work.
  const int slot = int(threadIdx.x) / a.threads_across, place = slot % a.positions_at_once;
  const int together = kSeriesThreads / a.threads_across / a.positions_at_once, position = first + place;
  if (slot >= together * a.positions_at_once || position >= length) return;
  const int wide = a.positions_at_once + kTaps - 1;
  for (int column = int(threadIdx.x) % a.threads_across * N; column < a.width; column += a.threads_across * N) {
    float kernel[N][kTaps], bias[N], added[N];
    load_float<N>(bias, a.bias + column);
    load_float<N>(added, a.positions + int64_t(position) * a.width + column);
#pragma unroll
    for (int i = 0; i < N; ++i)
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) kernel[i][tap] = to_float(a.kernel[(column + i) * kTaps + tap]);
#pragma unroll 2
    for (int patch = slot / a.positions_at_once; patch < patches; patch += together) {
      float values[N];
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = bias[i];
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap) {
        const float sample = seen[patch * wide + place + tap];
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] += kernel[i][tap] * sample;
      }
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = max(values[i], 0.0f) + added[i];
      store_float<N>(a.out + ((begin + patch) * length + position) * a.width + column, values);
    }
  }
}

}  // namespace tessera
