// Attention inside segments of rows.
//
// Next: kernels/csrc/activation.cu
#include "segment_attention.cuh"

#include "launch.h"
#include "segment_attention_simt.cuh"

namespace tessera {
namespace {

constexpr int kMaxMmaDim = 128;
constexpr int kMaxDim = 256;
constexpr int64_t kMaxStride = int64_t(1) << 24;  // elements: 128 rows stay within an int

template <typename T>
using Arguments = SegmentAttentionArguments<T>;

template <typename T>
dim3 grid_of(const Arguments<T>& arguments, int height) {
  const int64_t tiles = row_tile_limit(arguments.starts.rows, arguments.starts.segments, height);
  return {unsigned(tiles), unsigned(arguments.heads)};
}

template <typename T, int Dim, int Tiles>
void launch_tiles(const Arguments<T>& arguments, const Tensor& on) {
  launch("segment_attention", segment_attention_kernel<T, Dim, Tiles>,
         {grid_of(arguments, kAttentionRows<Tiles>), kAttentionThreads, size_t(kAttentionSharedBytes<Dim, Tiles>)}, on,
         arguments);
}

// Tall tiles read keys and values half as often; low ones waste less on short segments and fill the device with few
// rows. The result is the same, bit for bit. Where the one overtakes the other has not been measured.
template <typename T, int Dim>
void launch_mma(const Arguments<T>& arguments, const Tensor& on) {
  if constexpr (Dim != 96) {  // there, tall tiles need more registers than there are
    constexpr int kTall = kAttentionRows<2>;
    const int64_t tall_tiles = arguments.starts.rows / kTall * int64_t(arguments.heads);
    const bool long_segments = arguments.starts.rows >= int64_t(arguments.starts.segments) * kTall;
    if (long_segments && tall_tiles >= 2 * multiprocessors(on)) return launch_tiles<T, Dim, 2>(arguments, on);
  }
  launch_tiles<T, Dim, 1>(arguments, on);
}

template <typename T, int Dim>
void launch_simt(const Arguments<T>& arguments, const Tensor& on) {
  launch("segment_attention", segment_attention_simt_kernel<T, Dim>,
         {grid_of(arguments, kSimtRows<Dim>), kSimtThreads<Dim>, size_t(kSimtSharedBytes<Dim>)}, on, arguments);
}

template <typename T>
void launch_any(const Arguments<T>& a, const Tensor& on) {
  if constexpr (!std::is_same_v<T, float>) {
    const auto words = [](const T* pointer, int row, int head) {
      return aligned<T>(pointer, row, kVectorLength<T>) && head % kVectorLength<T> == 0;
    };
    const bool fits = a.dim <= kMaxMmaDim && a.dim % kVectorLength<T> == 0;
    if (fits && words(a.query, a.query_row, a.query_head) && words(a.key, a.key_row, a.key_head) &&
        words(a.value, a.value_row, a.value_head)) {
      if (a.dim <= 64) return launch_mma<T, 64>(a, on);
      if (a.dim <= 80) return launch_mma<T, 80>(a, on);
      if (a.dim <= 96) return launch_mma<T, 96>(a, on);
      return launch_mma<T, 128>(a, on);
    }
  }
  if (a.dim <= 64) return launch_simt<T, 64>(a, on);
  if (a.dim <= 128) return launch_simt<T, 128>(a, on);
  launch_simt<T, 256>(a, on);
}

void check_heads(const Tensor& x, const Tensor& query, const char* name) {
  check_rows(x, name);
  check_type(x, query.scalar_type(), name);
  STD_TORCH_CHECK(x.dim() == 3, name, " must have three axes: rows, heads and the elements of a head");
  check_shape(x, {query.size(0), query.size(1), query.size(2)}, name);
  STD_TORCH_CHECK(x.stride(0) < kMaxStride && x.stride(1) < (int64_t(1) << 31), name, " has rows too far apart");
}

Tensor segment_attention(Tensor query, Tensor key, Tensor value, Tensor starts, double scale, bool causal) {
  check_heads(query, query, "query");
  check_heads(key, query, "key");
  check_heads(value, query, "value");
  check_contiguous(starts, "starts");
  const bool wide = starts.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || starts.scalar_type() == ScalarType::Int, "starts must be int32 or int64");
  STD_TORCH_CHECK(starts.dim() == 1 && starts.size(0) >= 1, "starts must be the first rows of segments and the end");
  STD_TORCH_CHECK(scale > 0, "scale must be positive");
  const int64_t rows = query.size(0), heads = query.size(1), dim = query.size(2), segments = starts.size(0) - 1;
  STD_TORCH_CHECK(dim >= 1 && dim <= kMaxDim, "query has heads of ", dim, " elements; 1 to ", kMaxDim, " are built");
  STD_TORCH_CHECK(heads <= 65535, "query has more than 65535 heads");
  STD_TORCH_CHECK(rows + segments < (int64_t(1) << 30), "query has too many rows, or starts too many segments");
  const auto guard = on_device_of(query);
  Tensor out = torch::stable::new_empty(query, {rows, heads, dim});
  if (rows == 0 || heads == 0) return out;
  dispatch_float(query.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const Arguments<T> arguments{data<T>(query),
                                 data<T>(key),
                                 data<T>(value),
                                 int(query.stride(0)),
                                 int(key.stride(0)),
                                 int(value.stride(0)),
                                 int(query.stride(1)),
                                 int(key.stride(1)),
                                 int(value.stride(1)),
                                 {starts.const_data_ptr(), wide, int(segments), int(rows)},
                                 mutable_data<T>(out),
                                 int(heads),
                                 int(dim),
                                 float(scale * kLog2e),
                                 causal};
    launch_any<T>(arguments, query);
  });
  return out;
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) { m.impl("segment_attention", TORCH_BOX(&tessera::segment_attention)); }
