// Entries and weights of learned positions, their sum, and the rotary tables of vision towers.
//
// Next: kernels/csrc/series.cu
#include "positions.cuh"

#include <algorithm>

#include "launch.h"

namespace tessera {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMostRows = (int64_t(1) << 31) - 1;

void check_grids(const Tensor& grids, int64_t rows, int64_t merge) {
  check_contiguous(grids, "grids");
  check_type(grids, ScalarType::Long, "grids");
  STD_TORCH_CHECK(grids.dim() == 2 && grids.size(1) == kGridWidth, "grids must have four columns: first row, t, h, w");
  STD_TORCH_CHECK(rows >= 0 && rows <= kMostRows, "rows must be at least 0 and below 2 ** 31");
  STD_TORCH_CHECK(merge >= 1 && merge <= 1024, "merge must be between 1 and 1024");
}

std::tuple<Tensor, Tensor> position_taps(Tensor grids, int64_t rows, int64_t merge, int64_t side, bool cubic) {
  check_grids(grids, rows, merge);
  // Products of a side and a patch's place are of 32 bits.
  STD_TORCH_CHECK(side >= 1 && side <= 4096, "side must be between 1 and 4096");
  const auto guard = on_device_of(grids);
  const int64_t taps = cubic ? 16 : 4;
  Tensor index = torch::stable::new_empty(grids, {rows, taps}, ScalarType::Int);
  Tensor weight = torch::stable::new_empty(grids, {rows, taps}, ScalarType::Float);
  const unsigned blocks = unsigned(ceil_div<int64_t>(rows * (taps / 4), kThreads));
  launch("position_taps", cubic ? position_taps_kernel<true> : position_taps_kernel<false>, {blocks, kThreads}, grids,
         data<int64_t>(grids), int(grids.size(0)), rows, int(merge), int(side), mutable_data<int>(index),
         mutable_data<float>(weight));
  return {index, weight};
}

template <typename T, int N, int Taps>
void launch_add(AddPositionsArguments<T> a, const Tensor& on) {
  const int64_t vectors = ceil_div(a.hidden, N);
  a.column_blocks = int(ceil_div<int64_t>(vectors, kThreads));
  const unsigned each = unsigned(ceil_div<int64_t>(vectors, a.column_blocks));
  const unsigned threads = ceil_div(each, unsigned(kWarpSize)) * kWarpSize;
  const int64_t blocks = ceil_div<int64_t>(a.rows, kPositionRows) * a.column_blocks;
  STD_TORCH_CHECK(blocks <= kMostRows, "x is too large");
  launch("add_positions", add_positions_kernel<T, N, Taps>, {unsigned(blocks), threads}, on, a);
}

void check_taps(const Tensor& x, const Tensor& index, const Tensor& weight) {
  check_contiguous(index, "index");
  check_type(index, ScalarType::Int, "index");
  STD_TORCH_CHECK(index.dim() == 2 && (index.size(1) == 4 || index.size(1) == 16), "index must have 4 or 16 columns");
  check_shape(index, {x.size(0), index.size(1)}, "index");
  check_contiguous(weight, "weight");
  check_type(weight, ScalarType::Float, "weight");
  check_shape(weight, {x.size(0), index.size(1)}, "weight");
  STD_TORCH_CHECK(aligned<int>(index.const_data_ptr(), 4, 4) && aligned<float>(weight.const_data_ptr(), 4, 4),
                  "index and weight must begin at a multiple of 16 bytes");
}

void add_positions(Tensor x, OptionalTensor bias, Tensor table, Tensor index, Tensor weight) {
  check_rows(x, "x");
  STD_TORCH_CHECK(x.dim() == 2, "x must have two axes");
  const int64_t rows = x.size(0), hidden = x.size(1);
  STD_TORCH_CHECK(rows <= kMostRows && hidden < (int64_t(1) << 30), "x is too large");
  STD_TORCH_CHECK(rows < 2 || x.stride(0) >= hidden, "x has rows that overlap");
  check_contiguous(table, "table");
  check_type(table, x.scalar_type(), "table");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == hidden, "table must have rows as long as those of x");
  check_taps(x, index, weight);
  if (bias) {
    check_contiguous(*bias, "bias");
    check_type(*bias, x.scalar_type(), "bias");
    check_shape(*bias, {hidden}, "bias");
  }
  if (rows == 0 || hidden == 0) return;
  const auto guard = on_device_of(x);
  dispatch_float(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    AddPositionsArguments<T> a{mutable_data<T>(x), x.stride(0), data_or_null<T>(bias), data<T>(table)};
    a.index = data<int>(index);
    a.weight = data<float>(weight);
    a.rows = rows;
    a.hidden = int(hidden);
    const bool vectors = aligned<T>(a.x, a.stride, kLength) && aligned<T>(a.bias, 0, kLength) &&
                         aligned<T>(a.table, hidden, kLength);
    const bool cubic = index.size(1) == 16;
    if (vectors)
      cubic ? launch_add<T, kLength, 16>(a, x) : launch_add<T, kLength, 4>(a, x);
    else
      cubic ? launch_add<T, 1, 16>(a, x) : launch_add<T, 1, 4>(a, x);
  });
}

std::tuple<Tensor, Tensor> vision_rotary(Tensor grids, int64_t rows, int64_t merge, Tensor inv_freq) {
  check_grids(grids, rows, merge);
  check_contiguous(inv_freq, "inv_freq");
  check_type(inv_freq, ScalarType::Float, "inv_freq");
  STD_TORCH_CHECK(inv_freq.dim() == 1 && inv_freq.size(0) <= 4096, "inv_freq must have one axis, of at most 4096");
  const int64_t half = inv_freq.size(0);
  const auto guard = on_device_of(grids);
  Tensor cos = torch::stable::new_empty(inv_freq, {rows, 2 * half});
  Tensor sin = torch::stable::new_empty(inv_freq, {rows, 2 * half});
  if (half == 0) return {cos, sin};
  // Two columns a thread, where the tables are not wider than that.
  const int groups = int(std::clamp<int64_t>(kRotaryThreads / half, 1, kRotaryThreads));
  const int64_t blocks = ceil_div<int64_t>(ceil_div(rows, merge * merge), groups);
  launch("vision_rotary", vision_rotary_kernel, {unsigned(blocks), kRotaryThreads}, grids, data<int64_t>(grids),
         int(grids.size(0)), rows, int(merge), data<float>(inv_freq), int(half), mutable_data<float>(cos),
         mutable_data<float>(sin), groups);
  return {cos, sin};
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("position_taps", TORCH_BOX(&tessera::position_taps));
  m.impl("add_positions", TORCH_BOX(&tessera::add_positions));
  m.impl("vision_rotary", TORCH_BOX(&tessera::vision_rotary));
}
