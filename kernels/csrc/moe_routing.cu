// Mixture of experts, around the products: the choice of experts, the sort by expert, the weighed sum.
//
// Next: kernels/include/grouped_gemm.cuh
#include "moe_routing.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kWarpsPerBlock = 4;
constexpr int kCombineThreads = 256;

template <typename T, int PerLane>
void launch_choice(const RoutingArguments<T>& arguments, const Tensor& on) {
  constexpr int kLength = PerLane < kVectorLength<T> ? PerLane : kVectorLength<T>;
  const bool vectors =
      aligned<T>(arguments.logits, arguments.logits_stride, kLength) && arguments.experts % kLength == 0;
  const unsigned blocks = unsigned(ceil_div<int64_t>(arguments.rows, kWarpsPerBlock));
  launch("choose_experts", vectors ? choose_experts_kernel<T, PerLane, kLength> : choose_experts_kernel<T, PerLane, 1>,
         {blocks, kWarpsPerBlock * kWarpSize}, on, arguments);
}

template <typename T>
void launch_choice(const RoutingArguments<T>& arguments, const Tensor& on) {
  if (arguments.experts <= kWarpSize) return launch_choice<T, 1>(arguments, on);
  if (arguments.experts <= 2 * kWarpSize) return launch_choice<T, 2>(arguments, on);
  if (arguments.experts <= 4 * kWarpSize) return launch_choice<T, 4>(arguments, on);
  if (arguments.experts <= 8 * kWarpSize) return launch_choice<T, 8>(arguments, on);
  launch_choice<T, 16>(arguments, on);
}

std::tuple<Tensor, Tensor> choose_experts(Tensor logits, OptionalTensor bias, int64_t k, bool sigmoid,
                                          int64_t num_groups, int64_t top_groups, bool within_groups, bool normalise,
                                          double scale) {
  check_rows(logits, "logits");
  STD_TORCH_CHECK(logits.dim() == 2, "choose_experts: logits have two axes");
  const int64_t rows = logits.size(0), experts = logits.size(1);
  STD_TORCH_CHECK(experts >= 1 && experts <= kMaxExperts, "choose_experts: num_experts is at most ", kMaxExperts);
  STD_TORCH_CHECK(num_groups >= 1 && num_groups <= kWarpSize && experts % num_groups == 0,
                  "choose_experts: num_groups divides the experts and is at most ", kWarpSize);
  STD_TORCH_CHECK(top_groups >= 1 && top_groups <= num_groups, "choose_experts: top_groups is at most num_groups");
  const int64_t size = experts / num_groups;
  STD_TORCH_CHECK(within_groups || top_groups == num_groups || size > 1,
                  "choose_experts: num_groups leaves groups of one, which have no two best");
  STD_TORCH_CHECK(!within_groups || k % num_groups == 0, "choose_experts: k is a multiple of num_groups");
  STD_TORCH_CHECK(k >= 1 && k <= kWarpSize && k <= (within_groups ? experts : top_groups * size),
                  "choose_experts: k is more than the experts to choose from, or than ", kWarpSize);
  STD_TORCH_CHECK(rows * k < (int64_t(1) << 31), "choose_experts: too many rows");
  if (bias) {
    check_contiguous(*bias, "bias");
    check_shape(*bias, {experts}, "bias");
    check_type(*bias, ScalarType::Float, "bias");
  }
  const auto guard = on_device_of(logits);
  Tensor chosen = torch::stable::new_empty(logits, {rows, k}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(logits, {rows, k}, ScalarType::Float);
  dispatch_float(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_choice<T>({data<T>(logits), logits.stride(0), data_or_null<float>(bias), mutable_data<int32_t>(chosen),
                      mutable_data<float>(weights), rows, int(experts), int(k), int(num_groups), int(top_groups),
                      within_groups, sigmoid, normalise, float(scale)},
                     logits);
  });
  return {chosen, weights};
}

std::tuple<Tensor, Tensor> sort_by_expert(Tensor experts, int64_t num_experts) {
  constexpr int64_t kFew = 4096;  // entries that a small block goes through at once or twice
  check_contiguous(experts, "experts");
  check_type(experts, ScalarType::Int, "experts");
  STD_TORCH_CHECK(num_experts >= 1 && num_experts < (1 << 16), "sort_by_expert: num_experts is out of range");
  const int64_t entries = experts.numel();
  STD_TORCH_CHECK(entries < (int64_t(1) << 30), "sort_by_expert: too many rows");
  const auto guard = on_device_of(experts);
  Tensor order = torch::stable::new_empty(experts, {entries});
  Tensor starts = torch::stable::new_empty(experts, {num_experts + 1});
  launch("sort_by_expert", sort_by_expert_kernel, {unsigned(num_experts), entries <= kFew ? 256u : 1024u}, experts,
         data<int32_t>(experts), int(entries), int(num_experts), mutable_data<int32_t>(order),
         mutable_data<int32_t>(starts));
  return {order, starts};
}

template <typename T>
void launch_combine(CombineArguments<T> arguments, int64_t rows, const Tensor& on) {
  constexpr int kLength = kVectorLength<T>;
  const bool vectors = aligned<T>(arguments.answers, arguments.hidden, kLength) &&
                       aligned<T>(arguments.shared, arguments.shared_stride, kLength) &&
                       aligned<T>(arguments.out, arguments.hidden, kLength);
  const int pieces = ceil_div(arguments.hidden, vectors ? kLength : 1);
  arguments.blocks_per_row = ceil_div(pieces, kCombineThreads);
  const int threads = ceil_div(ceil_div(pieces, arguments.blocks_per_row), kWarpSize) * kWarpSize;
  const int64_t blocks = rows * arguments.blocks_per_row;
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "combine_experts: too many rows");
  launch("combine_experts", vectors ? combine_experts_kernel<T, kLength> : combine_experts_kernel<T, 1>,
         {unsigned(blocks), unsigned(threads)}, on, arguments);
}

Tensor combine_experts(Tensor answers, Tensor weights, OptionalTensor shared, OptionalTensor shared_gate) {
  check_contiguous(answers, "answers");
  check_contiguous(weights, "weights");
  check_type(weights, ScalarType::Float, "weights");
  STD_TORCH_CHECK(weights.dim() == 2 && answers.dim() == 2, "combine_experts: answers and weights have two axes");
  const int64_t rows = weights.size(0), choices = weights.size(1), hidden = answers.size(1);
  check_shape(answers, {rows * choices, hidden}, "answers");
  STD_TORCH_CHECK(hidden >= 1, "combine_experts: answers are empty");
  STD_TORCH_CHECK(shared || !shared_gate, "combine_experts: shared_gate has nothing to weigh");
  if (shared) {
    check_rows(*shared, "shared");
    check_shape(*shared, {rows, hidden}, "shared");
    check_type(*shared, answers.scalar_type(), "shared");
  }
  if (shared_gate) {
    check_rows(*shared_gate, "shared_gate");
    check_shape(*shared_gate, {rows, 1}, "shared_gate");
    check_type(*shared_gate, answers.scalar_type(), "shared_gate");
  }
  const auto guard = on_device_of(answers);
  Tensor out = torch::stable::new_empty(answers, {rows, hidden});
  dispatch_float(answers.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    launch_combine<T>({data<T>(answers), data<float>(weights), data_or_null<T>(shared), shared ? shared->stride(0) : 0,
                       data_or_null<T>(shared_gate), shared_gate ? shared_gate->stride(0) : 0, mutable_data<T>(out),
                       int(choices), int(hidden), 1},
                      rows, answers);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("choose_experts", TORCH_BOX(&tessera::choose_experts));
  m.impl("sort_by_expert", TORCH_BOX(&tessera::sort_by_expert));
  m.impl("combine_experts", TORCH_BOX(&tessera::combine_experts));
}
