// Rotation for the language model: tables, norm and rotation of queries and keys, and the write into the cache.
//
// Next: kernels/tessera_kernels/cuda.py
#include "rotary.cuh"

#include <algorithm>

#include "launch.h"

namespace tessera {
namespace {

constexpr int kThreads = 128;
constexpr int kFewRows = 512;  // up to which a block takes all heads of a row at once, as there are few blocks
constexpr int kScalarPieces = 8;  // of a thread where heads are no whole vectors
constexpr int64_t kMaxHeadDim = 2 * kWarpSize * kScalarPieces;
constexpr int64_t kMaxIndex = int64_t(1) << 31;

struct Caches {
  Tensor key, value, slots;  // (blocks, kv_heads, block_size, head_dim) twice, (rows,)
};

void check_caches(const Caches& caches, ScalarType type, int64_t rows, int64_t kv_heads, int64_t head_dim) {
  const Tensor &key = caches.key, &value = caches.value;
  check_contiguous(key, "key_cache");
  check_contiguous(value, "value_cache");
  check_type(key, type, "key_cache");
  check_type(value, type, "value_cache");
  STD_TORCH_CHECK(key.dim() == 4, "key_cache must have four axes");
  STD_TORCH_CHECK(key.size(0) * key.size(2) < kMaxIndex, "key_cache has too many slots");
  check_shape(key, {key.size(0), kv_heads, key.size(2), head_dim}, "key_cache");
  check_shape(value, {key.size(0), kv_heads, key.size(2), head_dim}, "value_cache");
  check_contiguous(caches.slots, "slots");
  check_type(caches.slots, ScalarType::Long, "slots");
  check_shape(caches.slots, {rows}, "slots");
}

template <typename T>
PagedCache<T> paged(const Caches& caches) {
  return {mutable_data<T>(caches.key), mutable_data<T>(caches.value), data<int64_t>(caches.slots),
          int(caches.key.size(2))};
}

// ---- norm and rotation

struct Heads {
  Tensor qkv;
  OptionalTensor q_weight, k_weight;
  double eps;
  Tensor cos, sin;
  int64_t heads, kv_heads, head_dim;
  std::optional<Caches> caches;
};

void check_weight(const OptionalTensor& weight, const Heads& parts, const char* name) {
  if (!weight) return;
  check_contiguous(*weight, name);
  check_shape(*weight, {parts.head_dim}, name);
  if (weight->scalar_type() != parts.qkv.scalar_type()) check_type(*weight, ScalarType::Float, name);
  if (parts.q_weight) check_type(*weight, parts.q_weight->scalar_type(), name);
}

void check_angles(const Tensor& x, const Heads& parts, const char* name) {
  check_contiguous(x, name);
  check_type(x, ScalarType::Float, name);
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 3, name, " must have two or three axes");
  const int64_t rows = parts.qkv.size(0), half = x.size(-1);
  STD_TORCH_CHECK(2 * half <= parts.head_dim, name, " has more than half a head's columns");
  if (x.dim() == 2) return check_shape(x, {rows, half}, name);
  check_shape(x, {rows, parts.kv_heads, half}, name);
}

void check_heads(const Heads& parts) {
  const Tensor& qkv = parts.qkv;
  check_rows(qkv, "qkv");
  STD_TORCH_CHECK(qkv.dim() == 2, "qkv must have two axes");
  STD_TORCH_CHECK(parts.heads > 0 && parts.kv_heads > 0 && parts.heads % parts.kv_heads == 0,
                  "num_heads must be a multiple of num_kv_heads");
  STD_TORCH_CHECK(parts.head_dim > 0 && parts.head_dim <= kMaxHeadDim, "head_dim must be from 1 to ", kMaxHeadDim);
  const int64_t moved = parts.heads + (parts.caches ? 2 : 1) * parts.kv_heads;
  STD_TORCH_CHECK(qkv.size(1) >= moved * parts.head_dim, "qkv has fewer columns than its heads");
  STD_TORCH_CHECK(qkv.size(0) < 2 || qkv.stride(0) >= qkv.size(1), "qkv has rows that overlap");
  STD_TORCH_CHECK(qkv.size(0) < kMaxIndex && qkv.size(1) < kMaxIndex, "qkv is too large");
  check_weight(parts.q_weight, parts, "q_weight");
  check_weight(parts.k_weight, parts, "k_weight");
  check_angles(parts.cos, parts, "cos");
  check_angles(parts.sin, parts, "sin");
  STD_TORCH_CHECK(parts.sin.dim() == parts.cos.dim() && parts.sin.size(-1) == parts.cos.size(-1),
                  "sin has another shape than cos");
  if (parts.caches)
    check_caches(*parts.caches, qkv.scalar_type(), qkv.size(0), parts.kv_heads, parts.head_dim);
}

template <typename T, typename W, int N, int PerThread>
void launch_heads(const HeadsArguments<T, W>& a, const Tensor& on) {
  int lanes_log = 0;
  while ((PerThread << lanes_log) < count_pieces<N>(a.half, a.head_dim)) ++lanes_log;
  const int all_lanes = (a.heads + (a.cache.slots ? 2 : 1) * a.kv_heads) << lanes_log;
  const int most = a.rows <= kFewRows ? kMaxHeadThreads : kThreads;
  const int threads = std::min(most, ceil_div(all_lanes, kWarpSize) * kWarpSize);
  launch("qk_norm_rope", heads_kernel<T, W, N, PerThread>, {unsigned(a.rows), unsigned(threads)}, on, a, lanes_log);
}

template <typename T, typename W>
void run_heads(const Heads& parts) {
  const Tensor& qkv = parts.qkv;
  const HeadsArguments<T, W> a{
      mutable_data<T>(qkv),
      qkv.stride(0),
      data_or_null<W>(parts.q_weight),
      data_or_null<W>(parts.k_weight),
      data<float>(parts.cos),
      data<float>(parts.sin),
      qkv.size(0),
      int(parts.heads),
      int(parts.kv_heads),
      int(parts.head_dim),
      int(parts.cos.size(-1)),
      parts.cos.dim() == 2 ? 1 : int(parts.kv_heads),
      float(parts.eps),
      1.0f / float(parts.head_dim),
      parts.caches ? paged<T>(*parts.caches) : PagedCache<T>{}};
  constexpr int kLength = kVectorLength<T>;
  const bool vectors = a.half % kLength == 0 && a.head_dim % kLength == 0 &&
                       count_pieces<kLength>(a.half, a.head_dim) <= kWarpSize &&
                       aligned<T>(a.qkv, a.stride, kLength) && aligned<W>(a.q_weight, 0, kLength) &&
                       aligned<W>(a.k_weight, 0, kLength) && aligned<float>(a.cos, 0, kLength) &&
                       aligned<float>(a.sin, 0, kLength) && aligned<T>(a.cache.key, 0, kLength) &&
                       aligned<T>(a.cache.value, 0, kLength);
  if (vectors)
    launch_heads<T, W, kLength, 1>(a, qkv);
  else
    launch_heads<T, W, 1, kScalarPieces>(a, qkv);
}

void norm_rope(const Heads& parts) {
  check_heads(parts);
  const auto guard = on_device_of(parts.qkv);
  const OptionalTensor& weight = parts.q_weight ? parts.q_weight : parts.k_weight;
  dispatch_float(parts.qkv.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (!weight || weight->scalar_type() == parts.qkv.scalar_type()) return run_heads<T, T>(parts);
    if constexpr (!std::is_same_v<T, float>) run_heads<T, float>(parts);
  });
}

void qk_norm_rope(Tensor qkv, OptionalTensor q_weight, OptionalTensor k_weight, double eps, Tensor cos, Tensor sin,
                  int64_t num_heads, int64_t num_kv_heads, int64_t head_dim) {
  norm_rope({qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, head_dim, {}});
}

void qk_norm_rope_store(Tensor qkv, OptionalTensor q_weight, OptionalTensor k_weight, double eps, Tensor cos,
                        Tensor sin, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, Tensor key_cache,
                        Tensor value_cache, Tensor slots) {
  norm_rope({qkv, q_weight, k_weight, eps, cos, sin, num_heads, num_kv_heads, head_dim,
             Caches{key_cache, value_cache, slots}});
}

// ---- the cache alone

void store_kv(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, Tensor slots) {
  check_rows(key, "key");
  check_rows(value, "value");
  STD_TORCH_CHECK(key.dim() == 3, "key must have three axes");
  const int64_t rows = key.size(0), kv_heads = key.size(1), head_dim = key.size(2);
  check_shape(value, {rows, kv_heads, head_dim}, "value");
  check_type(value, key.scalar_type(), "value");
  STD_TORCH_CHECK(rows < kMaxIndex && kv_heads * head_dim < (int64_t(1) << 24), "key is too large");
  const Caches caches{key_cache, value_cache, slots};
  check_caches(caches, key.scalar_type(), rows, kv_heads, head_dim);
  if (key.numel() == 0) return;
  const auto guard = on_device_of(key);
  dispatch_float(key.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    const StoreArguments<T> a{data<T>(key),    data<T>(value),  key.stride(0), value.stride(0), key.stride(1),
                              value.stride(1), int(kv_heads), int(head_dim), paged<T>(caches)};
    const auto run = [&](auto kernel, int length) {
      const int vectors = int(kv_heads * head_dim) / length;
      const unsigned threads = unsigned(std::min(2 * kThreads, ceil_div(vectors, kWarpSize) * kWarpSize));
      launch("store_kv", kernel, {unsigned(rows), threads}, key, a);
    };
    constexpr int kLength = kVectorLength<T>;
    const bool aligned_heads = a.key_head_stride % kLength == 0 && a.value_head_stride % kLength == 0;
    if (head_dim % kLength == 0 && aligned_heads && aligned<T>(a.key, a.key_stride, kLength) &&
        aligned<T>(a.value, a.value_stride, kLength) && aligned<T>(a.cache.key, 0, kLength) &&
        aligned<T>(a.cache.value, 0, kLength))
      run(store_kernel<T, kLength>, kLength);
    else
      run(store_kernel<T, 1>, 1);
  });
}

// ---- tables

std::tuple<Tensor, Tensor> rotary_table(Tensor positions, Tensor inv_freq, Tensor axes) {
  check_rows(positions, "positions");
  check_type(positions, ScalarType::Long, "positions");
  STD_TORCH_CHECK(positions.dim() == 2, "positions must have two axes");
  check_contiguous(inv_freq, "inv_freq");
  check_type(inv_freq, ScalarType::Float, "inv_freq");
  STD_TORCH_CHECK(inv_freq.dim() == 1, "inv_freq must have one axis");
  const int64_t rows = positions.size(1), half = inv_freq.size(0);
  check_contiguous(axes, "axes");
  check_type(axes, ScalarType::Long, "axes");
  check_shape(axes, {half}, "axes");
  STD_TORCH_CHECK(rows * half < kMaxIndex, "positions are too many");
  const auto guard = on_device_of(positions);
  Tensor cos = torch::stable::new_empty(inv_freq, {rows, half}), sin = torch::stable::new_empty(inv_freq, {rows, half});
  if (rows == 0 || half == 0) return {cos, sin};
  const auto run = [&](auto kernel, int64_t length) {
    const int64_t blocks = ceil_div<int64_t>(rows * (half / length), kThreads);
    launch("rotary_table", kernel, {unsigned(blocks), kThreads}, positions, data<int64_t>(positions),
           positions.stride(0), data<float>(inv_freq), data<int64_t>(axes), mutable_data<float>(cos),
           mutable_data<float>(sin), rows, int(half));
  };
  if (half % kVectorLength<float> == 0)
    run(rotary_table_kernel<kVectorLength<float>>, kVectorLength<float>);
  else
    run(rotary_table_kernel<1>, 1);
  return {cos, sin};
}

}  // namespace
}  // namespace tessera

TESSERA_OPS(m) {
  m.impl("qk_norm_rope", TORCH_BOX(&tessera::qk_norm_rope));
  m.impl("qk_norm_rope_store", TORCH_BOX(&tessera::qk_norm_rope_store));
  m.impl("store_kv", TORCH_BOX(&tessera::store_kv));
  m.impl("rotary_table", TORCH_BOX(&tessera::rotary_table));
}
