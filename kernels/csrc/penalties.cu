// Logits as requests change them: token masks, biases and penalties, from compact lists.
//
// Next: kernels/csrc/sampling.cu
#include "penalties.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr int64_t kMaxTokens = int64_t(1) << 30;

template <typename Record>
const Record* records(const Tensor& x, const char* name) {
  check_contiguous(x, name);
  check_type(x, ScalarType::Int, name);
  STD_TORCH_CHECK(x.dim() == 2, name, " must have two axes");
  check_shape(x, {x.size(0), int64_t(sizeof(Record) / sizeof(int32_t))}, name);
  return static_cast<const Record*>(x.const_data_ptr());
}

Tensor penalised_logits(Tensor logits, Tensor rows, Tensor biases, Tensor seen, OptionalTensor drawn,
                        OptionalTensor allowed) {
  check_rows(logits, "logits");
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have two axes");
  const ChangedRow* changed = records<ChangedRow>(rows, "rows");
  const TokenValue* bias_list = records<TokenValue>(biases, "biases");
  const TokenValue* seen_list = records<TokenValue>(seen, "seen");
  const int64_t count = rows.size(0), vocab_size = logits.size(1);
  STD_TORCH_CHECK(vocab_size > 0 && vocab_size <= kMaxTokens, "logits have too few or too many columns");
  if (drawn) {
    check_contiguous(*drawn, "drawn");
    check_type(*drawn, ScalarType::Int, "drawn");
    STD_TORCH_CHECK(drawn->dim() == 2, "drawn must have two axes");
  }
  if (allowed) {
    check_contiguous(*allowed, "allowed");
    check_type(*allowed, ScalarType::Int, "allowed");
    check_shape(*allowed, {count, ceil_div<int64_t>(vocab_size, 32)}, "allowed");
  }
  const int64_t slices = ceil_div<int64_t>(vocab_size, kSliceLength);
  STD_TORCH_CHECK(count * slices < (int64_t(1) << 31), "rows are too many");
  const auto guard = on_device_of(logits);
  Tensor out = torch::stable::new_empty(logits, {count, vocab_size}, ScalarType::Float);
  dispatch_float(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const PenaltyArguments<T> arguments{data<T>(logits),
                                        logits.stride(0),
                                        aligned<T>(logits.const_data_ptr(), logits.stride(0), kNeighbours),
                                        changed,
                                        bias_list,
                                        seen_list,
                                        data_or_null<int32_t>(drawn),
                                        drawn ? drawn->size(1) : 0,
                                        allowed ? static_cast<const uint32_t*>(allowed->const_data_ptr()) : nullptr,
                                        mutable_data<float>(out),
                                        int(vocab_size),
                                        int(slices)};
    launch("penalised_logits", penalties_kernel<T>, {unsigned(count * slices), kSamplingThreads}, logits, arguments);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("penalised_logits", TORCH_BOX(&tessera::penalised_logits)); }
