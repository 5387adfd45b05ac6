// The gated delta rule for long sequences: a launch over all chunks, and one that walks through them.
//
// Next: kernels/include/gated_delta_chunk.cuh
#include "gated_delta_chunks.h"

#include "gated_delta_sequences.h"
#include "gated_delta_walk.cuh"

namespace tessera {
namespace {

template <typename T, int Dim>
void launch_chunks(const DeltaChunkArguments<T>& a, const Tensor& on) {
  using Chunk = DeltaChunk<T, Dim>;
  using Walk = DeltaWalk<T, Dim>;
  const int64_t heads = a.rule.heads, windows = ceil_div(a.rule.sequences.rows, kChunkWindow);
  launch("gated_delta_rule", delta_chunk_kernel<T, Dim>,
         {checked_blocks(windows * heads), unsigned(Chunk::kThreads), Chunk::kBytes}, on, a);
  const int64_t blocks = a.rule.sequences.count * heads * ceil_div(a.rule.value_dim, Walk::kColumns);
  launch("gated_delta_rule", delta_walk_kernel<T, Dim>,
         {checked_blocks(blocks), unsigned(Walk::kThreads), Walk::kBytes}, on, a);
}

}  // namespace

template <typename T>
bool takes_chunks(const GatedDeltaArguments<T>& a) {
  constexpr int kLength = kVectorLength<T>;
  return a.key_dim <= 2 * kDeltaRows && a.key_dim % kLength == 0 && a.value_dim % 2 == 0 &&
         aligned<T>(a.qkv, a.qkv_stride, kLength) && aligned<float>(a.states, 2, 2) &&
         a.qkv_stride < INT_MAX / kDeltaChunk;
}

template <typename T>
void solve_chunks(GatedDeltaArguments<T>& a, const Tensor& on) {
  const int64_t rows = a.sequences.rows, places = rows * a.heads;
  constexpr int64_t kFactors = sizeof(ChunkFactors) / sizeof(float);
  Tensor memory = torch::stable::new_empty(on, {places * (2 * kDeltaChunk + kFactors)}, ScalarType::Float);
  float* inverse = mutable_data<float>(memory);
  float* scores = inverse + places * kDeltaChunk;
  a.recurrent_length = kDeltaChunk - 1;
  const DeltaChunkArguments<T> arguments{a, inverse, scores,
                                         reinterpret_cast<ChunkFactors*>(scores + places * kDeltaChunk)};
  if (a.key_dim <= kDeltaRows) return launch_chunks<T, kDeltaRows>(arguments, on);
  launch_chunks<T, 2 * kDeltaRows>(arguments, on);
}

template bool takes_chunks(const GatedDeltaArguments<bf16>&);
template bool takes_chunks(const GatedDeltaArguments<fp16>&);
template void solve_chunks(GatedDeltaArguments<bf16>&, const Tensor&);
template void solve_chunks(GatedDeltaArguments<fp16>&, const Tensor&);

}  // namespace tessera
