// Attention in fp32: causal over the paged cache for the language model, whole segments for the vision tower.
//
// Two ways, by the number of query rows that share a key/value head. A few (decoding) are bound by reading the cache:
// dot products, block by block. Many (prefill, vision) are bound by arithmetic: 16 or 32 query rows lie side by side in
// a vector, so that scores, maxima and exponentials need no sums across lanes, and the softmax runs along the keys.
//
// Cache: (num_blocks, kv_heads, block_size, head_dim), keys and values apart.
//
// Reference: tessera_kernels/reference.py paged_attention, segment_attention
// Next: kernels/csrc/cpu/pointwise.cpp

#include <omp.h>

#include <algorithm>
#include <vector>

#include "tile.h"

namespace {

using namespace tessera;

constexpr int kFewRows = 8;        // query rows up to which dot products are faster
constexpr long kKeysAtOnce = 128;  // keys between two updates of the running softmax
constexpr float kMasked = -1e30f;

// Consecutive keys and values; row i of either lies at i * stride.
struct Span {
  const float* key;
  const float* value;
  long count, stride;
};

// One key/value head of one sequence in the cache.
struct PagedHead {
  const float *keys, *values;  // of block 0, this head
  const int32_t* blocks;
  long block_floats, block_size, head_dim;

  Span span(long token, long most) const {
    const long block = token / block_size, offset = token % block_size;
    const long at = blocks[block] * block_floats + offset * head_dim;
    return {keys + at, values + at, std::min(most, block_size - offset), head_dim};
  }

  PagedHead neighbour(long heads) const {
    PagedHead other = *this;
    other.keys += heads * block_size * head_dim;
    other.values += heads * block_size * head_dim;
    return other;
  }
};

// One head of a segment whose rows lie apart by a fixed stride.
struct StridedHead {
  const float *keys, *values;
  long stride;

  Span span(long token, long most) const { return {keys + token * stride, values + token * stride, most, stride}; }
};

// Query rows of one key/value head: row r is token first_token + r / group, head r % group of the group.
struct QueryRows {
  const float* query;  // token 0, first head of the group
  float* out;
  long query_stride, out_stride;  // floats from token to token
  long group, head_dim;

  const float* from(long row) const { return query + row / group * query_stride + row % group * head_dim; }
  QueryRows of_head(long heads) const {
    QueryRows other = *this;
    other.query += heads * group * head_dim;
    other.out += heads * group * head_dim;
    return other;
  }
  float* to(long row) const { return out + row / group * out_stride + row % group * head_dim; }
};

float* scratch(size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

// out[row][0 .. head_dim) += sum over the span of weight(row, key) * value(key), for `rows` rows of stride head_dim.
// spare: a row's worth of floats for each row, written where head_dim ends in half a tile.
void add_values(Stepped<kTileColumns> weights, int rows, const Span& span, long head_dim, float* out, float* spare) {
  for (long d = 0; d < head_dim; d += kTileColumns) {
    const bool half = head_dim - d < kTileColumns;
    const float* b0 = span.value + d;
    float* c0 = out + d;
    run_tile<0>(rows, weights, b0, half ? b0 : b0 + kLanes, span.stride, span.count, c0, half ? spare : c0 + kLanes,
                head_dim, true);
  }
}

// sums[row][0 .. kVectors * kLanes) += sum over the span of weight(row, key) * value(key)[at ..], sums in registers.
template <int kRows, int kVectors>
inline void add_stretch(const float* weights, long weight_stride, const Span& span, long at, float* sums,
                        long sum_stride) {
  vfloat sum[kRows][kVectors] = {};
  for (long i = 0; i < span.count; ++i) {
    const float* value = span.value + i * span.stride + at;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const vfloat part = load(value + v * kLanes);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) sum[row][v] += splat(weights[row * weight_stride + i]) * part;
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) {
      float* to = sums + row * sum_stride + v * kLanes;
      store(to, load(to) + sum[row][v]);
    }
}

// The same for a few rows. Values are read in long stretches of each key, which memory likes; that matters more than
// reading a stretch once for each row, from the first cache.
template <int kRows>
void add_values_few(const float* weights, long weight_stride, const Span& span, long head_dim, float* sums) {
  constexpr int kAtOnce = kLanes == kPanel ? 2 : 1, kVectors = 8;
  long d = 0;
  for (; d + kVectors * kLanes <= head_dim; d += kVectors * kLanes) {
    int row = 0;
    for (; row + kAtOnce <= kRows; row += kAtOnce)
      add_stretch<kAtOnce, kVectors>(weights + row * weight_stride, weight_stride, span, d, sums + row * head_dim + d,
                                     head_dim);
    for (; row < kRows; ++row)
      add_stretch<1, kVectors>(weights + row * weight_stride, weight_stride, span, d, sums + row * head_dim + d,
                               head_dim);
  }
  for (; d < head_dim; d += kLanes)
    add_stretch<kRows, 1>(weights, weight_stride, span, d, sums + d, head_dim);
}

// scores[row][key] = query(row) . key.
template <int kRows>
void score_few(const float* query, const Span& span, long head_dim, float* scores, long score_stride) {
  for (long i = 0; i < span.count; ++i) {
    const float* key = span.key + i * span.stride;
    vfloat sum[kRows] = {};
    for (long d = 0; d < head_dim; d += kLanes) {
      const vfloat k = load(key + d);
#pragma GCC unroll 8
      for (int row = 0; row < kRows; ++row) sum[row] += load(query + row * head_dim + d) * k;
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) scores[row * score_stride + i] = hsum(sum[row]);
  }
}

// scores -> weights that sum to one; zero from `count` to `whole`, which is a multiple of a vector.
void softmax(float* scores, long count, long whole) {
  const long padded = (count + kLanes - 1) / kLanes * kLanes;
  for (long i = count; i < padded; ++i) scores[i] = kMasked;
  vfloat most = splat(kMasked);
  for (long i = 0; i < padded; i += kLanes) most = vmax(most, load(scores + i));
  float top = most[0];
  for (int lane = 1; lane < kLanes; ++lane) top = std::max(top, most[lane]);
  vfloat sum = {};
  for (long i = 0; i < padded; i += kLanes) {
    const vfloat e = vexp(load(scores + i) - top);
    store(scores + i, e);
    sum += e;
  }
  const float factor = 1.0f / hsum(sum);
  for (long i = 0; i < padded; i += kLanes) store(scores + i, load(scores + i) * factor);
  std::fill(scores + count, scores + whole, 0.0f);
}

// Query rows [first, first + kRows) of several neighbouring key/value heads over all their keys: row r sees keys
// [0, hidden_from + r / group). The heads of a block lie side by side, so they are read as one run of memory.
template <int kRows>
void attend_few(const QueryRows& rows, long first, const PagedHead& head, int heads, long kv_len, long hidden_from,
                float scale) {
  kv_len = std::min(kv_len, hidden_from + (first + kRows - 1) / rows.group);
  const long dim = rows.head_dim, padded = (kv_len + kLanes - 1) / kLanes * kLanes;
  float* query = scratch(heads * kRows * (2 * dim + padded));
  float *sums = query + heads * kRows * dim, *scores = sums + heads * kRows * dim;
  for (long h = 0; h < heads; ++h)
    for (long row = 0; row < kRows; ++row)
      for (long d = 0; d < dim; ++d)
        query[(h * kRows + row) * dim + d] = rows.of_head(h).from(first + row)[d] * scale;
  std::fill(sums, scores, 0.0f);
  for (long token = 0; token < kv_len; token += head.span(token, kv_len - token).count)
    for (long h = 0; h < heads; ++h) {
      const Span span = head.neighbour(h).span(token, kv_len - token);
      score_few<kRows>(query + h * kRows * dim, span, dim, scores + h * kRows * padded + token, padded);
    }
  for (long row = 0; row < heads * kRows; ++row)
    softmax(scores + row * padded, hidden_from + (first + row % kRows) / rows.group, padded);
  for (long token = 0; token < kv_len; token += head.span(token, kv_len - token).count)
    for (long h = 0; h < heads; ++h) {
      const Span span = head.neighbour(h).span(token, kv_len - token);
      add_values_few<kRows>(scores + h * kRows * padded + token, padded, span, dim, sums + h * kRows * dim);
    }
  for (long h = 0; h < heads; ++h)
    for (long row = 0; row < kRows; ++row)
      std::memcpy(rows.of_head(h).to(first + row), sums + (h * kRows + row) * dim, dim * sizeof(float));
}

using AttendFew = void (*)(const QueryRows&, long, const PagedHead&, int, long, long, float);
constexpr AttendFew kAttendFew[kFewRows] = {attend_few<1>, attend_few<2>, attend_few<3>, attend_few<4>,
                                            attend_few<5>, attend_few<6>, attend_few<7>, attend_few<8>};

// scores[key][lane] = query(lane) . key, for the keys of a span, whose rows are first laid one after the other.
template <int kDim>
void score_lanes(const float* query, const Span& span, long head_dim, float* keys, float* scores) {
  const float* from = span.key;
  if (span.stride != head_dim) {
    for (long i = 0; i < span.count; ++i)
      std::memcpy(keys + i * head_dim, span.key + i * span.stride, head_dim * sizeof(float));
    from = keys;
  }
  for (long i = 0; i < span.count; i += kMaxTileRows) {
    const int rows = int(std::min<long>(kMaxTileRows, span.count - i));
    float* to = scores + i * kTileColumns;
    const float* key = from + i * head_dim;
    if constexpr (kDim > 0)
      run_tile<0>(rows, Stacked<kDim>{key}, query, query + kLanes, kTileColumns, kDim, to, to + kLanes, kTileColumns,
                  false);
    else
      run_tile<0>(rows, Strided{key, head_dim, 1}, query, query + kLanes, kTileColumns, head_dim, to, to + kLanes,
                  kTileColumns, false);
  }
}

void score_lanes(const float* query, const Span& span, long head_dim, float* keys, float* scores) {
  switch (head_dim) {
    case 64: return score_lanes<64>(query, span, head_dim, keys, scores);
    case 128: return score_lanes<128>(query, span, head_dim, keys, scores);
    default: return score_lanes<0>(query, span, head_dim, keys, scores);
  }
}

// The softmax of kLanes rows so far, one a lane.
struct RunningSoftmax {
  vfloat top = splat(kMasked), total = {};

  // scores[key][lane] -> exp(score - top), and what the sums so far are to be multiplied by. Lane l sees keys below
  // limit[l]; `start` is the first key's number.
  vfloat add(float* scores, long keys, long start, vfloat limit, bool masked) {
    vfloat most = top;
    if (masked)
      for (long i = 0; i < keys; ++i) {
        float* at = scores + i * kTileColumns;
        store(at, where_less(splat(float(start + i)), limit, load(at), splat(kMasked)));
      }
    for (long i = 0; i < keys; ++i) most = vmax(most, load(scores + i * kTileColumns));
    const vfloat shrink = vexp(top - most);
    vfloat sum = {};
    for (long i = 0; i < keys; ++i) {
      const vfloat e = vexp(load(scores + i * kTileColumns) - most);
      store(scores + i * kTileColumns, e);
      sum += e;
    }
    top = most;
    total = total * shrink + sum;
    return shrink;
  }
};

// Up to kTileColumns query rows, side by side in the lanes; lane l of rows [first, first + count) sees keys
// [0, hidden_from + (first + l) / group), or all where hidden_from < 0.
template <typename Head>
void attend_many(const QueryRows& rows, long first, int count, const Head& head, long kv_len, long hidden_from,
                 float scale) {
  constexpr int kWide = kTileColumns;
  const long dim = rows.head_dim;
  float* query = scratch(kWide * (3 * dim + kKeysAtOnce) + kKeysAtOnce * dim);
  float *sums = query + kWide * dim, *spare = sums + kWide * dim, *scores = spare + kWide * dim;
  float* copied_keys = scores + kWide * kKeysAtOnce;
  std::fill(query, scores, 0.0f);
  float limit[kWide], factor[kWide];
  for (int lane = 0; lane < kWide; ++lane) {
    const long row = first + std::min(lane, count - 1);
    limit[lane] = float(hidden_from < 0 ? kv_len : hidden_from + row / rows.group);
    if (lane < count)
      for (long d = 0; d < dim; ++d) query[d * kWide + lane] = rows.from(row)[d] * scale;
  }
  const long end = std::min(kv_len, long(limit[count - 1]));
  RunningSoftmax softmax[2];
  for (long start = 0; start < end; start += kKeysAtOnce) {
    const long keys = std::min(kKeysAtOnce, end - start);
    for (long token = 0; token < keys;) {
      const Span span = head.span(start + token, keys - token);
      score_lanes(query, span, dim, copied_keys, scores + token * kWide);
      token += span.count;
    }
    const bool masked = start + keys > long(limit[0]);
    for (int side = 0; side < 2; ++side) {
      const long lane = side * kLanes;
      store(factor + lane, softmax[side].add(scores + lane, keys, start, load(limit + lane), masked));
    }
    if (start > 0)
      for (int lane = 0; lane < count; ++lane)
        for (long d = 0; d < dim; ++d) sums[lane * dim + d] *= factor[lane];
    for (long token = 0; token < keys;) {
      const Span span = head.span(start + token, keys - token);
      for (int lane = 0; lane < count; lane += kMaxTileRows)
        add_values({scores + token * kWide + lane}, std::min(kMaxTileRows, count - lane), span, dim,
                   sums + lane * dim, spare);
      token += span.count;
    }
  }
  for (int side = 0; side < 2; ++side) store(factor + side * kLanes, 1.0f / softmax[side].total);
  for (int lane = 0; lane < count; ++lane) {
    float* to = rows.to(first + lane);
    for (long d = 0; d < dim; ++d) to[d] = sums[lane * dim + d] * factor[lane];
  }
}

// Rows [first, first + count) of each of some neighbouring heads.
struct Work { long sequence, head, heads, first, count; };

}  // namespace

// Writes new keys and values into the cache. key, value: (tokens, kv_heads, head_dim) with `stride` floats from token
// to token. slots: (tokens,), block * block_size + offset; a token of a negative one is written nowhere.
TESSERA_EXPORT void tessera_store_kv(const float* key, const float* value, long stride, float* key_cache,
                                     float* value_cache, const int64_t* slots, long tokens, long kv_heads,
                                     long head_dim, long block_size) {
  for (long token = 0; token < tokens; ++token) {
    if (slots[token] < 0) continue;
    const long block = slots[token] / block_size, offset = slots[token] % block_size;
    for (long head = 0; head < kv_heads; ++head) {
      const long to = ((block * kv_heads + head) * block_size + offset) * head_dim;
      const long from = token * stride + head * head_dim;
      std::memcpy(key_cache + to, key + from, head_dim * sizeof(float));
      std::memcpy(value_cache + to, value + from, head_dim * sizeof(float));
    }
  }
}

// Causal attention of each sequence's newest tokens over its whole cache.
//
// query: (tokens, heads, head_dim) with query_stride floats from token to token. out: (tokens, heads, head_dim).
// block_tables: (sequences, max_blocks). query_start: (sequences + 1,). kv_lens: (sequences,), new tokens counted.
// head_dim: a multiple of the vector's lanes. fixed_order: what a token gets depends on its own keys alone, not on how
// many tokens of its sequence come with it; then all of them go the way of a few.
TESSERA_EXPORT void tessera_paged_attention(const float* query, long query_stride, float* out, const float* key_cache,
                                            const float* value_cache, const int32_t* block_tables, long max_blocks,
                                            const int32_t* query_start, const int32_t* kv_lens, long sequences,
                                            long heads, long kv_heads, long head_dim, long block_size, float scale,
                                            int fixed_order, int threads) {
  const long group = heads / kv_heads;
  thread_local std::vector<Work> work;
  work.clear();
  const long few_heads = std::clamp(sequences * kv_heads / (2L * threads), 1L, kv_heads);
  for (long s = 0; s < sequences; ++s) {
    const long rows = (query_start[s + 1] - query_start[s]) * group;
    const bool few = rows == group || rows <= kFewRows;
    const long step = few || fixed_order ? kFewRows : kTileColumns, heads_step = few ? few_heads : 1;
    for (long head = 0; head < kv_heads; head += heads_step)
      for (long first = 0; first < rows; first += step)
        work.push_back({s, head, std::min(heads_step, kv_heads - head), first, std::min(step, rows - first)});
  }
  const std::vector<Work>& shared = work;  // the master's, whichever thread looks
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (size_t i = 0; i < shared.size(); ++i) {
    const Work item = shared[i];
    const long token = query_start[item.sequence], query_len = query_start[item.sequence + 1] - token;
    const long kv_len = kv_lens[item.sequence], at = item.head * block_size * head_dim;
    const PagedHead head{key_cache + at, value_cache + at, block_tables + item.sequence * max_blocks,
                         kv_heads * block_size * head_dim, block_size, head_dim};
    const long column = item.head * group * head_dim;
    const QueryRows rows{query + token * query_stride + column, out + token * heads * head_dim + column, query_stride,
                         heads * head_dim, group, head_dim};
    const long hidden_from = kv_len - query_len + 1;
    if (item.heads > 1 || item.count <= kFewRows)
      kAttendFew[item.count - 1](rows, item.first, head, int(item.heads), kv_len, hidden_from, scale);
    else
      attend_many(rows, item.first, int(item.count), head, kv_len, hidden_from, scale);
  }
}

// Attention inside each segment: of each row to all, or (causal) to those before it and itself. A segment's sums are
// taken in an order that is its own. qkv: (rows, 3, heads, head_dim). starts: (segments + 1,).
// out: (rows, heads, head_dim). head_dim: a multiple of the vector's lanes.
TESSERA_EXPORT void tessera_segment_attention(const float* qkv, float* out, const int64_t* starts, long segments,
                                              long heads, long head_dim, float scale, int causal, int threads) {
  const long width = heads * head_dim;
  thread_local std::vector<Work> work;
  work.clear();
  for (long s = 0; s < segments; ++s)
    for (long head = 0; head < heads; ++head)
      for (long first = 0; first < starts[s + 1] - starts[s]; first += kTileColumns)
        work.push_back({s, head, 1, first, std::min<long>(kTileColumns, starts[s + 1] - starts[s] - first)});
  const std::vector<Work>& shared = work;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (size_t i = 0; i < shared.size(); ++i) {
    const Work item = shared[i];
    const long start = starts[item.sequence], length = starts[item.sequence + 1] - start;
    const float* base = qkv + start * 3 * width + item.head * head_dim;
    const StridedHead head{base + width, base + 2 * width, 3 * width};
    const QueryRows rows{base, out + start * width + item.head * head_dim, 3 * width, width, 1, head_dim};
    attend_many(rows, item.first, int(item.count), head, length, causal ? 1 : -1, scale);
  }
}
