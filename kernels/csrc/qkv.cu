// Queries, keys and values of the vision tower as its attention reads them.
//
// Next: kernels/csrc/rotary.cu
#include "qkv.cuh"

#include <algorithm>

#include "launch.h"

namespace tessera {
namespace {

constexpr unsigned kThreads = 256;  // of a block of short rows

template <typename T, int N>
void launch_qkv(const QkvArguments<T>& arguments, const Tensor& on) {
  const unsigned pieces = unsigned(count_pieces<N>(arguments.half, arguments.padded_dim));
  const unsigned heads = unsigned(arguments.heads), items = heads * pieces;
  STD_TORCH_CHECK(items < (1u << 16), "qkv has too many columns");
  const unsigned rows = std::max(1u, kThreads / items);
  const unsigned warps = ceil_div(rows * items, unsigned(kWarpSize));
  const unsigned threads = std::min(unsigned(kMaxQkvThreads), warps * kWarpSize);
  const QkvBlock block{rows, rows * items, Divisor(pieces), Divisor(heads)};
  const int64_t blocks = ceil_div<int64_t>(arguments.rows, rows);
  launch("qkv_prepare", qkv_kernel<T, N>, {unsigned(blocks), threads}, on, arguments, block);
}

// Heads of 72 turn in halves of 36: no whole vectors of 16 bytes, but of 8.
template <typename T>
void launch_widest(const QkvArguments<T>& a, const Tensor& on) {
  const auto fits = [&](int length) {
    return a.half % length == 0 && a.head_dim % length == 0 && a.padded_dim % length == 0 &&
           aligned<T>(a.qkv, a.stride, length) && aligned<T>(a.bias, 0, length) && aligned<T>(a.out, 0, length) &&
           aligned<float>(a.cos, a.half, length) && aligned<float>(a.sin, a.half, length);
  };
  constexpr int kLength = kVectorLength<T>;
  if (fits(kLength)) return launch_qkv<T, kLength>(a, on);
  if (fits(kLength / 2)) return launch_qkv<T, kLength / 2>(a, on);
  launch_qkv<T, 1>(a, on);
}

void check_table(const Tensor& x, int64_t rows, int64_t half, const char* name) {
  check_contiguous(x, name);
  check_type(x, ScalarType::Float, name);
  check_shape(x, {rows, half}, name);
}

Tensor qkv_prepare(Tensor qkv, OptionalTensor bias, Tensor cos, Tensor sin, int64_t num_heads, int64_t padded_dim) {
  check_rows(qkv, "qkv");
  STD_TORCH_CHECK(qkv.dim() == 2, "qkv must have two axes");
  const int64_t rows = qkv.size(0), width = qkv.size(1);
  STD_TORCH_CHECK(num_heads > 0 && width % (3 * num_heads) == 0, "num_heads does not divide the columns of qkv");
  const int64_t head_dim = width / (3 * num_heads);
  STD_TORCH_CHECK(padded_dim >= head_dim, "padded_dim is smaller than a head of qkv");
  STD_TORCH_CHECK(rows < (int64_t(1) << 31) && num_heads * padded_dim < (int64_t(1) << 24), "qkv is too large");
  STD_TORCH_CHECK(cos.dim() == 2 && 2 * cos.size(1) <= head_dim, "cos must have two axes and at most half a head");
  check_table(cos, rows, cos.size(1), "cos");
  check_table(sin, rows, cos.size(1), "sin");
  if (bias) {
    check_contiguous(*bias, "bias");
    check_shape(*bias, {width}, "bias");
    check_type(*bias, qkv.scalar_type(), "bias");
  }
  const auto guard = on_device_of(qkv);
  Tensor out = torch::stable::new_empty(qkv, {3, rows, num_heads, padded_dim});
  if (out.numel() == 0) return out;
  dispatch_float(qkv.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_widest<T>({data<T>(qkv), qkv.stride(0), data_or_null<T>(bias), data<float>(cos), data<float>(sin),
                      mutable_data<T>(out), rows, int(num_heads), int(head_dim), int(padded_dim), int(cos.size(1))},
                     qkv);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("qkv_prepare", TORCH_BOX(&tessera::qkv_prepare)); }
