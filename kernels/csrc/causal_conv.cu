// Causal depthwise convolution of linear attention, prefill and decode in one launch.
//
// Next: kernels/csrc/gated_delta.cu
#include "causal_conv.cuh"

#include "gated_delta_sequences.h"

namespace tessera {
namespace {

constexpr unsigned kThreads = 128;

template <typename T, int N>
void launch_conv(const CausalConvArguments<T>& arguments, int64_t taps, const Tensor& on) {
  const int64_t work = arguments.sequences.count + ceil_div(arguments.sequences.rows, kTileRows);
  const Shape shape{checked_blocks(work * ceil_div(arguments.channels, int(kThreads) * N)), kThreads};
  switch (taps) {
    case 2: return launch("causal_conv", causal_conv_kernel<T, N, 2>, shape, on, arguments);
    case 3: return launch("causal_conv", causal_conv_kernel<T, N, 3>, shape, on, arguments);
    case 4: return launch("causal_conv", causal_conv_kernel<T, N, 4>, shape, on, arguments);
    default: STD_TORCH_CHECK(false, "causal_conv: weight has ", taps, " taps; the op takes 2 to 4");
  }
}

Tensor causal_conv(Tensor x, Tensor weight, Tensor states, Tensor slots, Tensor query_start, Tensor context_lens) {
  STD_TORCH_CHECK(x.dim() == 2, "causal_conv: x has two axes");
  STD_TORCH_CHECK(weight.dim() == 2, "causal_conv: weight has two axes");
  STD_TORCH_CHECK(states.dim() == 3, "causal_conv: states has three axes");
  const int64_t rows = x.size(0), channels = x.size(1), taps = weight.size(0);
  check_rows(x, "x");
  check_contiguous(weight, "weight");
  check_type(weight, x.scalar_type(), "weight");
  check_shape(weight, {taps, channels}, "weight");
  check_contiguous(states, "states");
  check_type(states, x.scalar_type(), "states");
  check_shape(states, {states.size(0), channels, taps - 1}, "states");
  STD_TORCH_CHECK(channels < (1 << 24), "causal_conv: too many channels");
  const StateSequences sequences = state_sequences(slots, query_start, context_lens, rows);
  const auto guard = on_device_of(x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (rows == 0) return out;
  dispatch_float(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    const CausalConvArguments<T> arguments{
        data<T>(x), x.stride(0), data<T>(weight), mutable_data<T>(states), mutable_data<T>(out), sequences,
        int(channels)};
    const bool vectors = channels % kLength == 0 && aligned<T>(arguments.x, x.stride(0), kLength) &&
                         aligned<T>(arguments.weight, channels, kLength) &&
                         aligned<T>(arguments.states, channels, kLength) &&
                         aligned<T>(arguments.out, channels, kLength);
    if (vectors)
      launch_conv<T, kLength>(arguments, taps, x);
    else
      launch_conv<T, 1>(arguments, taps, x);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("causal_conv", TORCH_BOX(&tessera::causal_conv)); }
