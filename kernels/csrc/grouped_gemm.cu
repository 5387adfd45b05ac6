// Products of rows that were sorted by expert, each group by its own matrix; the tile is chosen by rows an expert.
//
// Next: kernels/include/ptx.cuh
#include "grouped_gemm.cuh"

#include "launch.h"

namespace tessera {
namespace {

// Few rows stream weights: small tiles, many bytes under way. Many rows share them: tiles that keep tensor cores busy.
using FewRows = TileShape<16, 64, 1, 4, 6, 3>;
using SomeRows = TileShape<64, 128, 2, 4, 4, 2>;
using ManyRows = TileShape<128, 128, 2, 4, 3, 2>;

template <typename T, typename Shape, bool SwiGlu, bool Vectors>
void launch_tiles(GroupedArguments<T> arguments, int64_t entries, const Tensor& on) {
  arguments.column_tiles = ceil_div(arguments.out_features, SwiGlu ? Shape::kColumns / 2 : Shape::kColumns);
  // Each expert with rows has one tile that may be partly empty, and the rest of all rows fills whole ones.
  const int64_t chosen = entries < arguments.experts ? entries : arguments.experts;
  const int64_t blocks = (chosen + (entries - chosen) / Shape::kRows) * arguments.column_tiles;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "grouped_linear: too many rows");
  launch("grouped_linear", grouped_linear_kernel<T, Shape, SwiGlu, Vectors>,
         {unsigned(blocks), Shape::kThreads, kStageLength<T, Shape> * Shape::kStages * sizeof(T)}, on, arguments);
}

template <typename T, bool SwiGlu>
void launch_products(const GroupedArguments<T>& arguments, int64_t entries, const Tensor& on) {
  constexpr int kLength = kVectorLength<T>;
  const bool vectors = aligned<T>(arguments.x, arguments.x_stride, kLength) &&
                       aligned<T>(arguments.weight, arguments.in, kLength) &&
                       aligned<T>(arguments.out, arguments.out_features, kLength);
  if (!vectors) return launch_tiles<T, FewRows, SwiGlu, false>(arguments, entries, on);
  const int64_t experts = arguments.experts;
  if (entries <= 8 * experts) return launch_tiles<T, FewRows, SwiGlu, true>(arguments, entries, on);
  if (entries <= 64 * experts) return launch_tiles<T, SomeRows, SwiGlu, true>(arguments, entries, on);
  launch_tiles<T, ManyRows, SwiGlu, true>(arguments, entries, on);
}

Tensor grouped_linear(Tensor x, Tensor weight, Tensor order, Tensor starts, bool swiglu) {
  check_rows(x, "x");
  check_contiguous(weight, "weight");
  check_type(weight, x.scalar_type(), "weight");
  check_contiguous(order, "order");
  check_type(order, ScalarType::Int, "order");
  check_contiguous(starts, "starts");
  check_type(starts, ScalarType::Int, "starts");
  STD_TORCH_CHECK(x.dim() == 2 && weight.dim() == 3, "grouped_linear: x has two axes and weight three");
  const int64_t rows = x.size(0), in = x.size(1), entries = order.numel();
  const int64_t experts = weight.size(0), out_features = swiglu ? weight.size(1) / 2 : weight.size(1);
  check_shape(weight, {experts, swiglu ? 2 * out_features : out_features, in}, "weight");
  check_shape(starts, {experts + 1}, "starts");
  STD_TORCH_CHECK(in >= 1 && out_features >= 1 && in < (1 << 30) && out_features < (1 << 30),
                  "grouped_linear: weight is empty or too large");
  STD_TORCH_CHECK(rows ? entries % rows == 0 : entries == 0, "grouped_linear: order is no multiple of the rows of x");
  const auto guard = on_device_of(x);
  Tensor out = torch::stable::new_empty(x, {entries, out_features});
  dispatch_float(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const GroupedArguments<T> arguments{data<T>(x),
                                        x.stride(0),
                                        data<T>(weight),
                                        data<int32_t>(order),
                                        data<int32_t>(starts),
                                        mutable_data<T>(out),
                                        int(rows ? entries / rows : 1),
                                        int(experts),
                                        int(in),
                                        int(out_features),
                                        0};
    if (swiglu)
      launch_products<T, true>(arguments, entries, x);
    else
      launch_products<T, false>(arguments, entries, x);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("grouped_linear", TORCH_BOX(&tessera::grouped_linear)); }
