// RMSNorm and LayerNorm, alone and after the residual add.
//
// Next: kernels/csrc/activation.cu
#include "norm.cuh"

#include "launch.h"

namespace tessera {
namespace {

template <typename T, typename W, int N, bool Centred, int PerThread>
void launch_warps(const NormArguments<T, W>& arguments, const Tensor& on) {
  const unsigned blocks = unsigned(ceil_div<int64_t>(arguments.rows, kNormWarps));
  launch("norm", norm_kernel<T, W, N, PerThread, Centred, true>, {blocks, kNormWarps * kWarpSize}, on, arguments);
}

template <typename T, typename W, int N, bool Centred, int PerThread>
void launch_blocks(const NormArguments<T, W>& arguments, const Tensor& on) {
  const unsigned warps = unsigned(ceil_div(arguments.hidden, N * PerThread * kWarpSize));
  STD_TORCH_CHECK(warps * kWarpSize <= kNormThreads, "norm: rows of ", arguments.hidden, " elements are too long");
  launch("norm", norm_kernel<T, W, N, PerThread, Centred, false>, {unsigned(arguments.rows), warps * kWarpSize}, on,
         arguments);
}

// A warp holds rows of up to four vectors a lane; longer ones take a block, of four vectors a thread. Rows that no vector
// divides take up to sixteen elements a thread, since those of one element each would end at 4096.
template <typename T, typename W, int N, bool Centred>
void launch_norm(const NormArguments<T, W>& arguments, const Tensor& on) {
  const int vectors = ceil_div(arguments.hidden, N);
  if (vectors <= kWarpSize) return launch_warps<T, W, N, Centred, 1>(arguments, on);
  if (vectors <= 2 * kWarpSize) return launch_warps<T, W, N, Centred, 2>(arguments, on);
  if (vectors <= 4 * kWarpSize) return launch_warps<T, W, N, Centred, 4>(arguments, on);
  if (vectors <= 4 * kNormThreads || N > 1) return launch_blocks<T, W, N, Centred, 4>(arguments, on);
  if constexpr (N == 1) launch_blocks<T, W, N, Centred, 16>(arguments, on);
}

struct Parts {
  OptionalTensor x, x_bias, residual;
  Tensor weight;
  OptionalTensor bias;
  double eps;
};

template <bool Centred>
Tensor norm(const Parts& parts) {
  const Tensor& rows = parts.residual ? *parts.residual : *parts.x;
  check_rows(rows, "x");
  const int64_t hidden = rows.size(-1);
  STD_TORCH_CHECK(hidden > 0, "norm: rows are empty");
  const int64_t count = rows.numel() / hidden;
  STD_TORCH_CHECK(rows.dim() == 2 || rows.is_contiguous(), "norm: more than two axes must be contiguous");
  STD_TORCH_CHECK(count < (int64_t(1) << 31), "norm: too many rows");
  check_contiguous(parts.weight, "weight");
  check_shape(parts.weight, {hidden}, "weight");
  if (parts.bias) {
    check_contiguous(*parts.bias, "bias");
    check_shape(*parts.bias, {hidden}, "bias");
    check_type(*parts.bias, parts.weight.scalar_type(), "bias");
  }
  if (parts.x && parts.residual) {
    check_rows(*parts.x, "x");
    STD_TORCH_CHECK(parts.x->dim() == 2 && rows.dim() == 2, "norm: x and residual have two axes");
    check_shape(*parts.x, {count, hidden}, "x");
    check_type(*parts.x, rows.scalar_type(), "x");
  }
  const int64_t period = parts.x_bias ? parts.x_bias->numel() : hidden;
  if (parts.x_bias) {
    check_contiguous(*parts.x_bias, "x_bias");
    check_type(*parts.x_bias, rows.scalar_type(), "x_bias");
    STD_TORCH_CHECK(period > 0 && hidden % period == 0, "norm: x_bias does not divide the row");
  }
  const auto guard = on_device_of(rows);
  Tensor out = torch::stable::new_empty(rows, rows.sizes());
  const auto run = [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using W = typename decltype(weight_type)::type;
    const auto stride = [&](const Tensor& x) { return x.dim() == 2 ? x.stride(0) : hidden; };
    const NormArguments<T, W> arguments{
        parts.x ? data<T>(*parts.x) : nullptr,
        parts.x ? stride(*parts.x) : 0,
        data_or_null<T>(parts.x_bias),
        int(period),
        parts.residual ? mutable_data<T>(*parts.residual) : nullptr,
        parts.residual ? stride(*parts.residual) : 0,
        data<W>(parts.weight),
        data_or_null<W>(parts.bias),
        mutable_data<T>(out),
        count,
        int(hidden),
        float(parts.eps)};
    constexpr int kLength = kVectorLength<T>;
    const bool vectors = aligned<T>(arguments.x, arguments.x_stride, kLength) &&
                         aligned<T>(arguments.residual, arguments.residual_stride, kLength) &&
                         aligned<T>(arguments.x_bias, period, kLength) && aligned<T>(arguments.out, hidden, kLength) &&
                         aligned<W>(arguments.weight, hidden, kLength) && aligned<W>(arguments.bias, hidden, kLength);
    if (vectors)
      launch_norm<T, W, kLength, Centred>(arguments, rows);
    else
      launch_norm<T, W, 1, Centred>(arguments, rows);
  };
  dispatch_float(rows.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (parts.weight.scalar_type() == rows.scalar_type()) return run(type, type);
    check_type(parts.weight, ScalarType::Float, "weight");
    if constexpr (!std::is_same_v<T, float>) run(type, Tag<float>());
  });
  return out;
}

Tensor rms_norm(Tensor x, Tensor weight, double eps) { return norm<false>({x, {}, {}, weight, {}, eps}); }

Tensor add_rms_norm(Tensor x, OptionalTensor x_bias, Tensor residual, Tensor weight, double eps) {
  return norm<false>({x, x_bias, residual, weight, {}, eps});
}

Tensor layer_norm(Tensor x, Tensor weight, Tensor bias, double eps) {
  return norm<true>({x, {}, {}, weight, bias, eps});
}

Tensor add_layer_norm(Tensor x, OptionalTensor x_bias, Tensor residual, Tensor weight, Tensor bias, double eps) {
  return norm<true>({x, x_bias, residual, weight, bias, eps});
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("rms_norm", TORCH_BOX(&tessera::rms_norm));
  m.impl("add_rms_norm", TORCH_BOX(&tessera::add_rms_norm));
  m.impl("layer_norm", TORCH_BOX(&tessera::layer_norm));
  m.impl("add_layer_norm", TORCH_BOX(&tessera::add_layer_norm));
}
