// Activations of feed-forward layers.
//
// Next: kernels/csrc/qkv.cu
#include "activation.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr unsigned kMaxThreads = 256;

struct Columns {
  unsigned blocks;   // of a group of rows
  unsigned threads;  // of a block
};

// Shares `count` vectors of a row out to blocks of the same size, whole warps each.
Columns share_out(int64_t count) {
  const unsigned blocks = unsigned(ceil_div<int64_t>(count, kMaxThreads));
  const unsigned each = unsigned(ceil_div<int64_t>(count, blocks));
  return {blocks, ceil_div(each, unsigned(kWarpSize)) * kWarpSize};
}

Shape shape_of(const Columns& columns, int64_t rows) {
  const int64_t blocks = ceil_div<int64_t>(rows, kActivationRows) * columns.blocks;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "activation: too many rows");
  return {unsigned(blocks), columns.threads};
}

void check_matrix(const Tensor& x, const char* name) {
  check_rows(x, name);
  STD_TORCH_CHECK(x.dim() == 2, name, " must have two axes");
  STD_TORCH_CHECK(x.size(1) < (int64_t(1) << 30), name, " has too many columns");
}

void bias_gelu(Tensor x, OptionalTensor bias, bool tanh) {
  check_matrix(x, "x");
  const int64_t rows = x.size(0), width = x.size(1);
  STD_TORCH_CHECK(rows < 2 || x.stride(0) >= width, "x has rows that overlap");
  if (bias) {
    check_contiguous(*bias, "bias");
    check_shape(*bias, {width}, "bias");
    check_type(*bias, x.scalar_type(), "bias");
  }
  if (rows == 0 || width == 0) return;
  const auto guard = on_device_of(x);
  const auto run = [&](auto type, auto length) {
    using T = typename decltype(type)::type;
    constexpr int N = decltype(length)::value;
    const Columns columns = share_out(ceil_div<int64_t>(width, N));
    const auto kernel = tanh ? bias_gelu_kernel<T, N, true> : bias_gelu_kernel<T, N, false>;
    launch("bias_gelu", kernel, shape_of(columns, rows), x, mutable_data<T>(x), x.stride(0), data_or_null<T>(bias),
           rows, int(width), int(columns.blocks));
  };
  dispatch_float(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    const bool vectors = width % kLength == 0 && aligned<T>(x.const_data_ptr(), x.stride(0), kLength) &&
                         aligned<T>(data_or_null<T>(bias), 0, kLength);
    if (vectors)
      run(type, std::integral_constant<int, kLength>());
    else
      run(type, std::integral_constant<int, 1>());
  });
}

Tensor swiglu(Tensor gate_up) {
  check_matrix(gate_up, "gate_up");
  STD_TORCH_CHECK(gate_up.size(1) % 2 == 0, "gate_up must have as many gates as ups");
  const int64_t rows = gate_up.size(0), inner = gate_up.size(1) / 2;
  const auto guard = on_device_of(gate_up);
  Tensor out = torch::stable::new_empty(gate_up, {rows, inner});
  if (rows == 0 || inner == 0) return out;
  const auto run = [&](auto type, auto length) {
    using T = typename decltype(type)::type;
    constexpr int N = decltype(length)::value;
    const Columns columns = share_out(ceil_div<int64_t>(inner, N));
    launch("swiglu", swiglu_kernel<T, N>, shape_of(columns, rows), gate_up, data<T>(gate_up), gate_up.stride(0),
           mutable_data<T>(out), rows, int(inner), int(columns.blocks));
  };
  dispatch_float(gate_up.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    if (inner % kLength == 0 && aligned<T>(gate_up.const_data_ptr(), gate_up.stride(0), kLength))
      run(type, std::integral_constant<int, kLength>());
    else
      run(type, std::integral_constant<int, 1>());
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("bias_gelu", TORCH_BOX(&tessera::bias_gelu));
  m.impl("swiglu", TORCH_BOX(&tessera::swiglu));
}
