// Draws of tokens and their log probabilities.
//
// Next: kernels/tessera_kernels/sampling.py
#include "sampling_top.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr int kRowWords = int(sizeof(SamplingRow) / sizeof(int32_t));

// Shares one piece of memory out, in pieces that begin at multiples of 16 bytes; first without it, to know its size.
class Workspace {
 public:
  template <typename Item>
  Item* take(int64_t count) {
    Item* items = base_ ? reinterpret_cast<Item*>(base_ + used_) : nullptr;
    used_ += ceil_div<int64_t>(count * int64_t(sizeof(Item)), 16) * 16;
    return items;
  }
  int64_t used() const { return used_; }
  void use(void* memory) {
    base_ = static_cast<unsigned char*>(memory);
    used_ = 0;
  }

 private:
  unsigned char* base_ = nullptr;
  int64_t used_ = 0;
};

template <typename T>
void take_workspace(SamplingArguments<T>& a, Workspace& space, bool random, bool filtered) {
  const int64_t pieces = int64_t(a.num_rows) * a.slices;
  a.summaries = space.take<SliceSummary>(pieces);
  a.top = space.take<u64>(pieces * max(a.num_top, 0));
  if (random) a.raced = space.take<u64>(pieces);
  if (!random || !filtered) return;
  a.totals = space.take<BinTotals>(a.num_rows);
  a.candidates = space.take<Candidate>(int64_t(a.num_rows) * kMaxCandidates);
}

template <typename T>
void launch_all(const SamplingArguments<T>& a, const Tensor& on) {
  const Shape slices{unsigned(a.num_rows) * unsigned(a.slices), kSamplingThreads};
  launch("sample", sampling_slices_kernel<T>, slices, on, a);
  if (a.num_top > 0) launch("sample", sampling_top_kernel<T>, slices, on, a);
  if (a.totals) launch("sample", sampling_bins_kernel<T>, slices, on, a);
  if (a.raced) launch("sample", sampling_race_kernel<T>, slices, on, a);
  launch("sample", sampling_finish_kernel<T>, {unsigned(a.num_rows), kSamplingThreads}, on, a);
}

void check_arguments(const Tensor& logits, const OptionalTensor& changed, const Tensor& rows, int64_t num_top) {
  check_rows(logits, "logits");
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have two axes");
  const int64_t vocab_size = logits.size(1);
  // Sums of mass are exact up to so many tokens.
  STD_TORCH_CHECK(vocab_size > 0 && vocab_size <= (int64_t(1) << 19), "logits have no columns, or more than 2 ** 19");
  check_contiguous(rows, "rows");
  check_type(rows, ScalarType::Int, "rows");
  STD_TORCH_CHECK(rows.dim() == 2, "rows must have two axes");
  check_shape(rows, {rows.size(0), kRowWords}, "rows");
  STD_TORCH_CHECK(rows.size(0) * ceil_div<int64_t>(vocab_size, kSliceLength) < (int64_t(1) << 31), "rows are too many");
  if (changed) {
    check_contiguous(*changed, "changed");
    check_type(*changed, ScalarType::Float, "changed");
    STD_TORCH_CHECK(changed->dim() == 2, "changed must have two axes");
    check_shape(*changed, {changed->size(0), vocab_size}, "changed");
  }
  STD_TORCH_CHECK(num_top >= -1 && num_top <= kMaxTop && num_top <= vocab_size,
                  "num_top is -1 or up to 32, and no more than there are tokens");
}

Tensor sample(Tensor logits, OptionalTensor changed, Tensor rows, bool random, bool filtered, int64_t num_top) {
  check_arguments(logits, changed, rows, num_top);
  const int64_t count = rows.size(0), vocab_size = logits.size(1);
  const auto guard = on_device_of(logits);
  Tensor out = torch::stable::new_empty(rows, {count, num_top < 0 ? 1 : 2 + 2 * num_top});
  if (count == 0) return out;
  dispatch_float(logits.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    SamplingArguments<T> a{};
    a.logits = data<T>(logits);
    a.stride = logits.stride(0);
    a.vectors = aligned<T>(a.logits, a.stride, kNeighbours);
    a.changed = data_or_null<float>(changed);
    a.changed_vectors = aligned<float>(a.changed, vocab_size, kNeighbours);
    a.rows = static_cast<const SamplingRow*>(rows.const_data_ptr());
    a.num_rows = int(count);
    a.vocab_size = int(vocab_size);
    a.slices = int(ceil_div<int64_t>(vocab_size, kSliceLength));
    a.num_top = int(num_top);
    a.out = mutable_data<int32_t>(out);
    Workspace space;
    take_workspace(a, space, random, filtered);
    Tensor memory = torch::stable::new_empty(rows, {space.used()}, ScalarType::Byte);
    space.use(memory.mutable_data_ptr());
    take_workspace(a, space, random, filtered);
    launch_all(a, logits);
  });
  return out;
}

__global__ void gumbel_kernel(const uint32_t* keys, const int32_t* tokens, int32_t* bits, float* noise, int64_t columns,
                              int64_t count) {
  const int64_t at = int64_t(blockIdx.x) * kSamplingThreads + threadIdx.x;
  if (at >= count) return;
  const uint32_t* words = keys + at / columns * 2;
  const uint32_t key[2] = {words[0], words[1]};
  const uint32_t random = noise_bits(key, tokens[at % columns]);
  bits[at] = int32_t(random);
  noise[at] = gumbel_of(uniform_of(random));
}

std::tuple<Tensor, Tensor> gumbel(Tensor keys, Tensor tokens) {
  for (const auto& [x, name] : {std::pair(&keys, "keys"), std::pair(&tokens, "tokens")}) {
    check_contiguous(*x, name);
    check_type(*x, ScalarType::Int, name);
  }
  STD_TORCH_CHECK(keys.dim() == 2 && tokens.dim() == 1, "keys have two axes, tokens one");
  check_shape(keys, {keys.size(0), 2}, "keys");
  const int64_t columns = tokens.size(0), count = keys.size(0) * columns;
  const int64_t blocks = ceil_div<int64_t>(count, kSamplingThreads);
  STD_TORCH_CHECK(blocks < (int64_t(1) << 31), "keys or tokens are too many");
  const auto guard = on_device_of(keys);
  Tensor bits = torch::stable::new_empty(keys, {keys.size(0), columns});
  Tensor noise = torch::stable::new_empty(keys, {keys.size(0), columns}, ScalarType::Float);
  launch("gumbel", gumbel_kernel, {unsigned(blocks), kSamplingThreads}, keys, data<uint32_t>(keys),
         data<int32_t>(tokens), mutable_data<int32_t>(bits), mutable_data<float>(noise), columns, count);
  return {bits, noise};
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("sample", TORCH_BOX(&tessera::sample));
  m.impl("gumbel", TORCH_BOX(&tessera::gumbel));
}
