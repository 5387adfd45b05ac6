// Embeddings and DeepStack features of items into the stream.
//
// Next: kernels/csrc/mrope_positions.cu
#include "embedding_merge.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr int kMaxThreads = 256;

template <typename T, int N>
void launch_merge(const MergeArguments<T>& arguments, int64_t rows, bool add, const Tensor& on) {
  const int vectors = ceil_div(arguments.width, N);
  const unsigned threads = unsigned(min(ceil_div(vectors, kWarpSize) * kWarpSize, kMaxThreads));
  const Shape shape{unsigned(rows), threads};
  if (add)
    launch("merge_embeddings", merge_kernel<T, N, true>, shape, on, arguments);
  else
    launch("merge_embeddings", merge_kernel<T, N, false>, shape, on, arguments);
}

void merge_embeddings(Tensor hidden, Tensor features, Tensor source, Tensor target, bool add) {
  STD_TORCH_CHECK(hidden.dim() == 2 && features.dim() == 2, "merge_embeddings: hidden and features have two axes");
  const int64_t rows = hidden.size(0), width = hidden.size(1);
  check_rows(hidden, "hidden");
  check_rows(features, "features");
  check_type(features, hidden.scalar_type(), "features");
  check_shape(features, {features.size(0), width}, "features");
  STD_TORCH_CHECK(source.dim() == 2, "merge_embeddings: source has two axes");
  check_contiguous(source, "source");
  check_type(source, ScalarType::Long, "source");
  check_shape(source, {source.size(0), 2}, "source");
  check_contiguous(target, "target");
  check_type(target, ScalarType::Long, "target");
  check_shape(target, {source.size(0), 2}, "target");
  STD_TORCH_CHECK(rows < (int64_t(1) << 31) && width < (1 << 24), "merge_embeddings: hidden is too large");
  if (hidden.numel() == 0 || source.size(0) == 0) return;
  const auto guard = on_device_of(hidden);
  dispatch_float(hidden.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    const MergeArguments<T> arguments{
        mutable_data<T>(hidden), hidden.stride(0), data<T>(features), features.stride(0), data<int64_t>(source),
        data<int64_t>(target), int(source.size(0)), int(width)};
    const bool vectors = width % kLength == 0 && aligned<T>(arguments.hidden, hidden.stride(0), kLength) &&
                         aligned<T>(arguments.features, features.stride(0), kLength);
    if (vectors)
      launch_merge<T, kLength>(arguments, rows, add, hidden);
    else
      launch_merge<T, 1>(arguments, rows, add, hidden);
  });
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("merge_embeddings", TORCH_BOX(&tessera::merge_embeddings)); }
