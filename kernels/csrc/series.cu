// Time series: normalisation, and patches to rows.
//
// Next: kernels/tessera_kernels/cuda.py
#include "series.cuh"

#include <algorithm>

#include "launch.h"

namespace tessera {
namespace {

constexpr int64_t kMostRows = (int64_t(1) << 31) - 1;
constexpr int64_t kMostBlocks = 512;   // along a series
constexpr int64_t kLeastSamples = 8;  // of a thread

Tensor normalise_series(Tensor samples, int64_t used, double spread, ScalarType dtype) {
  check_contiguous(samples, "samples");
  check_type(samples, ScalarType::Float, "samples");
  STD_TORCH_CHECK(samples.dim() == 2, "samples must have two axes: length, channels");
  const int64_t length = samples.size(0), channels = samples.size(1);
  STD_TORCH_CHECK(used >= 0 && used <= length, "used must be between 0 and the length");
  STD_TORCH_CHECK(channels < (int64_t(1) << 20), "samples has too many channels");
  const auto guard = on_device_of(samples);
  Tensor out = torch::stable::new_empty(samples, {used, channels}, dtype);
  if (used == 0 || channels == 0) return out;
  SeriesShape shape{length, int(channels), 1, 0};
  while (shape.lanes < channels && shape.lanes < kMostLanes) shape.lanes *= 2;
  shape.channel_blocks = int(ceil_div<int64_t>(channels, shape.lanes));
  const int64_t slots = kSeriesThreads / shape.lanes;
  const int64_t rows = std::max(slots * kLeastSamples, ceil_div(length, kMostBlocks));
  const int64_t blocks = ceil_div(length, rows), used_blocks = ceil_div(used, rows);
  Tensor partial = torch::stable::new_empty(samples, {blocks, channels, 2}, ScalarType::Double);
  launch("normalise_series", series_sums_kernel, {unsigned(blocks * shape.channel_blocks), kSeriesThreads}, samples,
         data<float>(samples), shape, rows, mutable_data<double>(partial));
  const unsigned used_grid = unsigned(used_blocks * shape.channel_blocks);
  dispatch_float(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("normalise_series", normalise_series_kernel<T>, {used_grid, kSeriesThreads}, samples, data<float>(samples),
           shape, data<double>(partial), int(blocks), rows, used, spread, mutable_data<T>(out));
  });
  return out;
}

void check_series(const Tensor& series, int64_t first, int64_t patches, int64_t stride) {
  check_contiguous(series, "series");
  check_type(series, ScalarType::Long, "series");
  STD_TORCH_CHECK(series.dim() == 2 && series.size(1) == kSeriesWidth,
                  "series must have four columns: first patch, first sample, length, channels");
  STD_TORCH_CHECK(first >= 0 && first <= kMostRows && patches >= 0 && patches <= kMostRows - first,
                  "first and patches must be at least 0 and together below 2 ** 31");
  STD_TORCH_CHECK(stride >= 1 && stride <= (1 << 20), "stride must be between 1 and 2 ** 20");
}

void check_embedding(const Tensor& samples, int64_t stride, const Tensor& kernel, const Tensor& bias,
                     const Tensor& positions) {
  check_contiguous(samples, "samples");
  check_contiguous(kernel, "kernel");
  STD_TORCH_CHECK(kernel.dim() == 2 && kernel.size(1) == kTaps, "kernel must have five columns");
  const int64_t width = kernel.size(0);
  STD_TORCH_CHECK(width >= 1 && width <= (1 << 20), "kernel must have between 1 and 2 ** 20 rows");
  check_contiguous(bias, "bias");
  check_shape(bias, {width}, "bias");
  check_contiguous(positions, "positions");
  STD_TORCH_CHECK(positions.dim() == 2 && positions.size(0) >= 2 * stride && positions.size(1) == width,
                  "positions must have a row as wide as the kernel for each sample of a patch");
  const ScalarType type = samples.scalar_type();
  check_type(kernel, type, "kernel");
  check_type(bias, type, "bias");
  check_type(positions, type, "positions");
}

template <typename T, int N>
void launch_series(SeriesArguments<T> a, const Tensor& on) {
  const int length = 2 * a.stride;
  a.threads_across = std::min(ceil_div(a.width, N), kSeriesThreads);
  a.positions_at_once = std::min(kSeriesThreads / a.threads_across, length);
  a.tiles = ceil_div(length, a.positions_at_once);
  const int64_t blocks = ceil_div<int64_t>(a.patches, kPatchesAtOnce) * a.tiles;
  STD_TORCH_CHECK(blocks <= kMostRows, "patches are too many");
  const size_t shared = sizeof(float) * kPatchesAtOnce * size_t(a.positions_at_once + kTaps - 1);
  launch("series_patches", series_patches_kernel<T, N>, {unsigned(blocks), kSeriesThreads, shared}, on, a);
}

Tensor series_patches(Tensor samples, Tensor series, int64_t first, int64_t patches, int64_t stride, Tensor kernel,
                      Tensor bias, Tensor positions) {
  check_series(series, first, patches, stride);
  check_embedding(samples, stride, kernel, bias, positions);
  const int64_t width = kernel.size(0);
  const auto guard = on_device_of(samples);
  Tensor out = torch::stable::new_empty(samples, {patches * 2 * stride, width});
  dispatch_float(samples.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    SeriesArguments<T> a{data<T>(samples), data<int64_t>(series), int(series.size(0)), first, patches, int(stride)};
    a.kernel = data<T>(kernel);
    a.bias = data<T>(bias);
    a.positions = data<T>(positions);
    a.out = mutable_data<T>(out);
    a.width = int(width);
    constexpr int kLength = kVectorLength<T>;
    if (aligned<T>(a.bias, width, kLength) && aligned<T>(a.positions, width, kLength))
      launch_series<T, kLength>(a, samples);
    else
      launch_series<T, 1>(a, samples);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("normalise_series", TORCH_BOX(&tessera::normalise_series));
  m.impl("series_patches", TORCH_BOX(&tessera::series_patches));
}
