// The gated delta rule over carried states, and the gated norm of what it reads.
//
// Next: kernels/include/gated_delta.cuh
#include "gated_delta.cuh"

#include "gated_delta_chunks.h"
#include "gated_delta_norm.cuh"
#include "gated_delta_sequences.h"

namespace tessera {
namespace {

constexpr int kWavesOfWide = 8;  // warps that each multiprocessor should get before stripes are wide

template <typename T, int Steps, int Quads, bool Vectors>
void launch_rule(const GatedDeltaArguments<T>& a, const Tensor& on) {
  using Stage = DeltaStage<T, Steps, Quads, Vectors>;
  const int64_t blocks = int64_t(a.sequences.count + 1) * a.heads * ceil_div(a.value_dim, Stage::kColumns);
  launch("gated_delta_rule", gated_delta_kernel<T, Steps, Quads, Vectors>,
         {checked_blocks(blocks), unsigned(Stage::kThreads), Stage::kBytes}, on, a);
}

// Wide stripes where there is no more than a token for each sequence and enough of these; both give the same bits.
template <typename T, int Steps>
void choose_width(const GatedDeltaArguments<T>& a, const Tensor& on) {
  constexpr int kPerLane = DeltaStage<T, Steps, 2, true>::kVector;
  const bool vectors = a.key_dim == Steps * kDeltaRows && a.value_dim % 4 == 0 &&
                       aligned<T>(a.qkv, a.qkv_stride, kPerLane) && aligned<float>(a.states, 4, 4);
  if (!vectors) return launch_rule<T, Steps, 2, false>(a, on);
  if constexpr (Steps <= 2) {
    const int64_t warps = int64_t(a.sequences.count) * a.heads * ceil_div(a.value_dim, 32);
    if (a.sequences.rows <= a.sequences.count && warps >= int64_t(kWavesOfWide) * multiprocessors(on))
      return launch_rule<T, Steps, 8, true>(a, on);
  }
  launch_rule<T, Steps, 2, true>(a, on);
}

void check_rule(const Tensor& qkv, const Tensor& gates, const Tensor& rate, const Tensor& bias, const Tensor& states,
                int64_t key_heads) {
  STD_TORCH_CHECK(states.dim() == 4, "gated_delta_rule: states has four axes");
  const int64_t heads = states.size(1), key_dim = states.size(2), value_dim = states.size(3);
  check_contiguous(states, "states");
  check_type(states, ScalarType::Float, "states");
  STD_TORCH_CHECK(key_heads > 0 && heads > 0 && heads % key_heads == 0,
                  "gated_delta_rule: heads of states is no multiple of key_heads");
  STD_TORCH_CHECK(key_dim > 0 && key_dim <= 4 * kDeltaRows && value_dim > 0,
                  "gated_delta_rule: states has keys of ", key_dim, " elements; the op takes 1 to ", 4 * kDeltaRows);
  STD_TORCH_CHECK(qkv.dim() == 2, "gated_delta_rule: qkv has two axes");
  check_rows(qkv, "qkv");
  check_shape(qkv, {qkv.size(0), 2 * key_heads * key_dim + heads * value_dim}, "qkv");
  check_rows(gates, "gates");
  check_shape(gates, {qkv.size(0), 2 * heads}, "gates");
  check_type(gates, qkv.scalar_type(), "gates");
  check_contiguous(rate, "rate");
  check_shape(rate, {heads}, "rate");
  check_type(rate, ScalarType::Float, "rate");
  check_contiguous(bias, "bias");
  check_shape(bias, {heads}, "bias");
  check_type(bias, ScalarType::Float, "bias");
}

Tensor gated_delta_rule(Tensor qkv, Tensor gates, Tensor rate, Tensor bias, Tensor states, Tensor slots,
                        Tensor query_start, Tensor context_lens, int64_t key_heads, bool chunked) {
  check_rule(qkv, gates, rate, bias, states, key_heads);
  const int64_t rows = qkv.size(0), heads = states.size(1), key_dim = states.size(2), value_dim = states.size(3);
  const StateSequences sequences = state_sequences(slots, query_start, context_lens, rows);
  const auto guard = on_device_of(qkv);
  Tensor out = torch::stable::new_empty(qkv, {rows, heads, value_dim});
  if (rows == 0) return out;
  dispatch_float(qkv.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    GatedDeltaArguments<T> arguments{
        data<T>(qkv), qkv.stride(0), data<T>(gates), gates.stride(0), data<float>(rate), data<float>(bias),
        mutable_data<float>(states), mutable_data<T>(out), sequences, int(key_heads), int(heads), int(key_dim),
        int(value_dim)};
    if constexpr (sizeof(T) == 2)
      if (chunked && takes_chunks(arguments)) solve_chunks(arguments, qkv);
    if (key_dim <= kDeltaRows) return choose_width<T, 1>(arguments, qkv);
    if (key_dim <= 2 * kDeltaRows) return choose_width<T, 2>(arguments, qkv);
    choose_width<T, 4>(arguments, qkv);
  });
  return out;
}

template <typename T, int N, int Lanes, int PerLane>
void launch_norm(const GatedNormArguments<T>& arguments, const Tensor& on) {
  constexpr unsigned kThreads = 128;
  const unsigned blocks = checked_blocks(ceil_div<int64_t>(arguments.count * Lanes, kThreads));
  launch("gated_rms_norm", gated_norm_kernel<T, N, Lanes, PerLane>, {blocks, kThreads}, on, arguments);
}

template <typename T, int N>
void choose_lanes(const GatedNormArguments<T>& arguments, const Tensor& on) {
  const int vectors = ceil_div(arguments.dim, N);
  if (vectors <= 16) return launch_norm<T, N, 16, 1>(arguments, on);
  if (vectors <= 32) return launch_norm<T, N, 32, 1>(arguments, on);
  STD_TORCH_CHECK(vectors <= 256, "gated_rms_norm: heads of ", arguments.dim, " elements are too long");
  launch_norm<T, N, 32, 8>(arguments, on);
}

Tensor gated_rms_norm(Tensor x, Tensor gate, Tensor weight, double eps) {
  STD_TORCH_CHECK(x.dim() == 3, "gated_rms_norm: x has three axes");
  const int64_t rows = x.size(0), heads = x.size(1), dim = x.size(2);
  check_contiguous(x, "x");
  check_rows(gate, "gate");
  check_shape(gate, {rows, heads * dim}, "gate");
  check_type(gate, x.scalar_type(), "gate");
  check_contiguous(weight, "weight");
  check_shape(weight, {dim}, "weight");
  check_type(weight, ScalarType::Float, "weight");
  const auto guard = on_device_of(x);
  Tensor out = torch::stable::new_empty(x, {rows, heads * dim});
  if (out.numel() == 0) return out;
  dispatch_float(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLength = kVectorLength<T>;
    const GatedNormArguments<T> arguments{
        data<T>(x), data<T>(gate), gate.stride(0), data<float>(weight), mutable_data<T>(out), rows * heads,
        int(heads), int(dim), float(eps)};
    const bool vectors = aligned<T>(arguments.x, dim, kLength) && aligned<T>(arguments.gate, gate.stride(0), kLength) &&
                         aligned<T>(arguments.out, dim, kLength);
    if (vectors)
      choose_lanes<T, kLength>(arguments, x);
    else
      choose_lanes<T, 1>(arguments, x);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("gated_delta_rule", TORCH_BOX(&tessera::gated_delta_rule));
  m.impl("gated_rms_norm", TORCH_BOX(&tessera::gated_rms_norm));
}
