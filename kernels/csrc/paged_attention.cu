// Causal attention over the paged cache: decoded and prefilled tokens of one batch, in one op.
//
// Launches: the decoded rows' splits, their sums where a row may have several splits, and the prefilled rows where
// there may be any. Grids and the memory of the sums (num_seqs * num_heads * splits * (head_dim + 4) fp32 numbers)
// follow from the bounds that the caller gives, so that a launch can be captured; rows and lengths are the device's.
//
// Our own and not a library's (FlashInfer, FlashAttention): their orders of sums are theirs to change, their plans are
// made on the host, and none could be compared here without a GPU; the benchmark compares with torch's attention.
//
// Next: kernels/tessera_kernels/attention.py
#include "paged_attention_prefill.cuh"
#include "paged_attention_simt.cuh"
#include "paged_attention_split.cuh"

#include "launch.h"

namespace tessera {
namespace {

constexpr int kMaxDim = 256;
constexpr int kBlocksPerMultiprocessor = 32;  // of the decoding grid: enough for an even end, few where none has work
constexpr int64_t kMaxCount = (int64_t(1) << 31) - 1;
constexpr int64_t kMaxSplitSize = 1 << 20;

struct Batch {
  Tensor query, keys, values, tables, query_start, context_lens;
  int64_t max_query_len, max_context_len;
  double scale;
  int64_t split_size;
  bool invariant;
};

void check_batch(const Batch& b) {
  check_rows(b.query, "query");
  STD_TORCH_CHECK(b.query.dim() == 3, "query must have three axes: rows, heads, head_dim");
  check_contiguous(b.keys, "key_cache");
  check_contiguous(b.values, "value_cache");
  STD_TORCH_CHECK(b.keys.dim() == 4, "key_cache must have four axes: blocks, heads, block_size, head_dim");
  check_type(b.keys, b.query.scalar_type(), "key_cache");
  check_type(b.values, b.query.scalar_type(), "value_cache");
  check_shape(b.values, {b.keys.size(0), b.keys.size(1), b.keys.size(2), b.keys.size(3)}, "value_cache");
  const int64_t heads = b.query.size(1), kv_heads = b.keys.size(1), dim = b.query.size(2);
  STD_TORCH_CHECK(b.keys.size(3) == dim, "key_cache has another head_dim than query");
  STD_TORCH_CHECK(dim > 0 && dim <= kMaxDim, "query: heads of ", dim, " elements; the op takes up to ", kMaxDim);
  STD_TORCH_CHECK(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "query: ", heads, " heads over ", kv_heads,
                  " key/value heads");
  STD_TORCH_CHECK(b.keys.size(2) > 0 && b.keys.size(2) * dim <= kMaxCount, "key_cache has a block_size out of range");
  check_rows(b.tables, "block_tables");
  check_type(b.tables, ScalarType::Int, "block_tables");
  STD_TORCH_CHECK(b.tables.dim() == 2, "block_tables must have two axes: sequences, blocks");
  const int64_t sequences = b.tables.size(0);
  check_contiguous(b.query_start, "query_start");
  check_type(b.query_start, ScalarType::Int, "query_start");
  check_shape(b.query_start, {sequences + 1}, "query_start");
  check_contiguous(b.context_lens, "context_lens");
  check_type(b.context_lens, ScalarType::Int, "context_lens");
  check_shape(b.context_lens, {sequences}, "context_lens");
  STD_TORCH_CHECK(b.max_query_len >= 0 && b.max_context_len >= 0, "max_query_len and max_context_len are counts");
  STD_TORCH_CHECK(b.scale > 0, "scale must be positive");
  STD_TORCH_CHECK(b.split_size > 0 && b.split_size % kPieceKeys == 0 && b.split_size <= kMaxSplitSize,
                  "split_size must be a multiple of ", kPieceKeys, ", and at most ", kMaxSplitSize);
  STD_TORCH_CHECK(b.query.size(0) * heads <= kMaxCount && sequences * heads <= kMaxCount, "query has too many rows");
}

template <typename T>
PagedArguments<T> arguments_of(const Batch& b, const Tensor& out) {
  PagedArguments<T> a{};
  a.query = data<T>(b.query);
  a.query_row = b.query.stride(0);
  a.query_head = b.query.stride(1);
  a.query_words = aligned<T>(a.query, a.query_row, kVectorLength<T>) && a.query_head % kVectorLength<T> == 0;
  a.keys = data<T>(b.keys);
  a.values = data<T>(b.values);
  a.head_stride = b.keys.size(2) * b.keys.size(3);
  a.block_stride = b.keys.size(1) * a.head_stride;
  a.tables = data<int32_t>(b.tables);
  a.table_row = b.tables.stride(0);
  a.query_start = data<int32_t>(b.query_start);
  a.context_lens = data<int32_t>(b.context_lens);
  a.out = mutable_data<T>(out);
  a.rows = int(b.query.size(0));
  a.num_seqs = int(b.tables.size(0));
  a.num_heads = int(b.query.size(1));
  a.num_kv_heads = int(b.keys.size(1));
  a.group = Divider(a.num_heads / a.num_kv_heads);
  a.dim = int(b.query.size(2));
  a.block_size = Divider(int(b.keys.size(2)));
  a.max_context = int(std::min({b.max_context_len, b.tables.size(1) * b.keys.size(2), kMaxCount / 2}));
  a.splits.size = int(b.split_size);
  a.max_splits = a.splits.count(a.max_context);
  a.partial_row = kPartialHeader + ceil_div(a.dim, 4) * 4;
  a.scale_log2e = float(b.scale * 1.4426950408889634);
  return a;
}

template <typename Stream, typename T>
void launch_split(const PagedArguments<T>& a, const PagedWork& work, int64_t blocks, const Tensor& on) {
  STD_TORCH_CHECK(blocks <= kMaxCount, "paged_attention: too many rows for one launch");
  launch("paged_attention", paged_split_kernel<T, Stream>,
         {dim3(unsigned(blocks)), kPagedThreads, size_t(paged_split_bytes<Stream>(work.whole))}, on, a, work);
}

// Decoded rows: a block for each split, or, where there may be very many, for every few splits.
template <typename Stream, typename T>
void launch_decode(const PagedArguments<T>& a, const Tensor& on) {
  const int tiles = ceil_div(a.group.divisor, Stream::kRows);
  const int64_t rows = int64_t(a.num_seqs) * a.num_kv_heads * tiles;
  const int64_t parts = ceil_div(int64_t(kBlocksPerMultiprocessor) * multiprocessors(on), rows);
  const PagedWork work{false, tiles, int(std::min(parts, int64_t(a.max_splits)))};
  launch_split<Stream>(a, work, rows * work.parts, on);
  if (a.max_splits == 1) return;
  const unsigned blocks = unsigned(ceil_div(a.num_seqs * a.num_heads, kPagedWarps));
  launch("paged_attention", paged_combine_kernel<T, Stream::kColumns>, {dim3(blocks), kPagedThreads}, on, a);
}

// Prefilled rows with the arithmetic of decoded ones.
template <typename Stream, typename T>
void launch_whole(const PagedArguments<T>& a, const Tensor& on) {
  const int64_t tiles = paged_tile_limit(int64_t(a.rows) * a.group.divisor, a.num_seqs, Stream::kRows);
  launch_split<Stream>(a, PagedWork{true, int(tiles), 1}, tiles * a.num_kv_heads, on);
}

template <typename T, int Dim>
void launch_prefill(const PagedArguments<T>& a, const Tensor& on) {
  using Shape = PrefillShape<Dim>;
  const int64_t tiles = paged_tile_limit(int64_t(a.rows) * a.group.divisor, a.num_seqs, Shape::kRows);
  launch("paged_attention", paged_prefill_kernel<T, Dim>,
         {dim3(unsigned(tiles * a.num_kv_heads)), kPagedThreads, size_t(Shape::kSharedBytes)}, on, a, int(tiles));
}

template <typename T, int Dim>
void launch_mma(const PagedArguments<T>& a, const Batch& b) {
  launch_decode<MmaStream<T, Dim>>(a, b.query);
  if (b.max_query_len < 2) return;
  if (b.invariant) return launch_whole<MmaStream<T, Dim>>(a, b.query);
  launch_prefill<T, Dim>(a, b.query);
}

template <typename T, int Dim>
void launch_simt(const PagedArguments<T>& a, const Batch& b) {
  launch_decode<SimtStream<T, Dim>>(a, b.query);
  if (b.max_query_len >= 2) launch_whole<SimtStream<T, Dim>>(a, b.query);
}

template <typename T>
void launch_any(const PagedArguments<T>& a, const Batch& b) {
  if constexpr (!std::is_same_v<T, float>) {
    constexpr int kWord = kVectorLength<T>;
    const bool words = aligned<T>(a.keys, a.dim, kWord) && aligned<T>(a.values, a.dim, kWord);
    if (words && a.block_size.divisor % kPieceKeys == 0) {
      if (a.dim <= 64) return launch_mma<T, 64>(a, b);
      if (a.dim <= 128) return launch_mma<T, 128>(a, b);
      return launch_mma<T, 256>(a, b);
    }
  }
  if (a.dim <= 128) return launch_simt<T, 128>(a, b);
  launch_simt<T, 256>(a, b);
}

Tensor paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor query_start,
                       Tensor context_lens, int64_t max_query_len, int64_t max_context_len, double scale,
                       int64_t split_size, bool invariant) {
  const Batch batch{query, key_cache, value_cache, block_tables, query_start, context_lens,
                    max_query_len, max_context_len, scale, split_size, invariant};
  check_batch(batch);
  const auto guard = on_device_of(query);
  if (block_tables.size(0) == 0) return torch::stable::new_zeros(query, query.sizes());
  Tensor out = torch::stable::new_empty(query, query.sizes());
  if (query.size(0) == 0) return out;
  dispatch_float(query.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    PagedArguments<T> a = arguments_of<T>(batch, out);
    std::optional<Tensor> partials;  // freed after the launches, on whose stream its memory is
    if (a.max_splits > 1) {
      partials = torch::stable::new_empty(query, {int64_t(a.num_seqs) * a.num_heads * a.max_splits, a.partial_row},
                                          ScalarType::Float);
      a.partials = mutable_data<float>(*partials);
    }
    launch_any(a, batch);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("paged_attention", TORCH_BOX(&tessera::paged_attention)); }
