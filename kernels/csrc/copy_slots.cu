// Copies between the slots of a cache.
//
// Next: kernels/csrc/runtime.cu
#include "copy_slots.cuh"

#include "launch.h"

namespace tessera {
namespace {

template <typename T, int N>
void launch_copy(CopyArguments<T> arguments, int64_t groups, const Tensor& on) {
  arguments.pieces = int(ceil_div<int64_t>(arguments.width, int64_t(N) * kCopyThreads * kCopySteps));
  const int64_t blocks = groups * arguments.count * arguments.pieces;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "copy_slots: pairs are too many");
  launch("copy_slots", copy_slots_kernel<T, N>, {unsigned(blocks), kCopyThreads}, on, arguments);
}

void copy_slots(Tensor cache, Tensor pairs) {
  STD_TORCH_CHECK(cache.dim() == 3, "copy_slots: cache has three axes");
  check_contiguous(cache, "cache");
  STD_TORCH_CHECK(pairs.dim() == 2, "copy_slots: pairs has two axes");
  check_contiguous(pairs, "pairs");
  check_type(pairs, ScalarType::Long, "pairs");
  check_shape(pairs, {pairs.size(0), 2}, "pairs");
  if (cache.numel() == 0 || pairs.size(0) == 0) return;
  STD_TORCH_CHECK(pairs.size(0) < (int64_t(1) << 31), "copy_slots: pairs are too many");
  const auto guard = on_device_of(cache);
  dispatch_float(cache.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    const CopyArguments<T> arguments{mutable_data<T>(cache), data<int64_t>(pairs),  cache.size(1),
                                     cache.size(2),          int(pairs.size(0)), 0};
    if (aligned<T>(arguments.cache, arguments.width, kLength))
      launch_copy<T, kLength>(arguments, cache.size(0), cache);
    else
      launch_copy<T, 1>(arguments, cache.size(0), cache);
  });
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("copy_slots", TORCH_BOX(&tessera::copy_slots)); }
