// Checks of the tensors that say which sequences a step has and where each keeps its state.
//
// Next: kernels/csrc/causal_conv.cu
#pragma once

#include "gated_delta_sequences.cuh"
#include "launch.h"

namespace tessera {

inline StateSequences state_sequences(const Tensor& slots, const Tensor& query_start, const Tensor& context_lens,
                                      int64_t rows) {
  const int64_t count = slots.numel();
  check_contiguous(slots, "slots");
  check_type(slots, ScalarType::Long, "slots");
  check_shape(slots, {count}, "slots");
  check_contiguous(query_start, "query_start");
  check_type(query_start, ScalarType::Int, "query_start");
  check_shape(query_start, {count + 1}, "query_start");
  check_contiguous(context_lens, "context_lens");
  check_type(context_lens, ScalarType::Int, "context_lens");
  check_shape(context_lens, {count}, "context_lens");
  STD_TORCH_CHECK(rows < (int64_t(1) << 31), "linear attention: too many rows");
  return {data<int64_t>(slots), data<int32_t>(query_start), data<int32_t>(context_lens), int(count), int(rows)};
}

// The blocks of a launch, which is one-dimensional.
inline unsigned checked_blocks(int64_t blocks) {
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "linear attention: too many rows for one launch");
  return unsigned(blocks);
}

}  // namespace tessera
