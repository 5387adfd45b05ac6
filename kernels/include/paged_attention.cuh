// Causal attention of sequences' newest tokens over keys and values in a paged cache: what its kernels share.
//
// The group of query heads that reads one key/value head is worked on together, token by token: "packed row" r of a
// sequence and such a head is token r / group, head r % group of the group. Tokens that are alone in their sequence's
// step are "decoded", others "prefilled". Three kernels:
// - paged_attention_split.cuh cuts the keys of decoded tokens at fixed places and gives each split to a block of its
//   own, so that one long sequence fills the device as well as many short ones;
// - the kernel below adds a token's splits up, first to last;
// - paged_attention_prefill.cuh takes tiles of many packed rows through all keys that they see.
//
// What moves when decoding: 2 * context * dim elements for each key/value head, once, and for each split and query head
// 4 * (dim + 4) bytes that are written and read again, mostly in the second-level cache. Splits of 256, four query
// heads a key/value head, dim 128, bf16: 3 % of the keys and values.
//
// Next: kernels/include/paged_attention_sums.cuh
#pragma once

#include "paged_attention_sums.cuh"
#include "vector.cuh"

namespace tessera {

constexpr int kPagedThreads = 128;
constexpr int kPagedWarps = kPagedThreads / kWarpSize;
constexpr int kPartialHeader = 4;  // floats before a split's sums: the largest score, the sum of weights, two unused

// Divides numbers from 0 to 2^31 - 1 by what only the launch knows, by one multiplication: where addresses hang on a
// quotient, thirty instructions would stand in the way.
struct Divider {
  int divisor;
  uint32_t factor;  // 2^shift / divisor, rounded up; the excess, times any number, stays below 2^shift
  int shift;

  Divider() = default;
  explicit Divider(int by) : divisor(by), shift(31) {
    while ((int64_t(1) << (shift - 31)) < by) ++shift;
    factor = uint32_t((uint64_t(1) << shift) / uint64_t(by) + 1);
  }

  __device__ __forceinline__ int quotient(int number) const {
    return int(uint64_t(uint32_t(number)) * factor >> shift);
  }
  __device__ __forceinline__ int remainder(int number) const { return number - quotient(number) * divisor; }
};

// Strides are in elements; rows * num_heads fits an int.
template <typename T>
struct PagedArguments {
  const T* query;  // (rows, num_heads, dim)
  int64_t query_row, query_head;
  bool query_words;  // whether its heads are whole, aligned 16-byte words
  const T* keys;     // (blocks, num_kv_heads, block_size, dim)
  const T* values;
  int64_t block_stride, head_stride;
  const int32_t* tables;  // (num_seqs, at least max_context / block_size)
  int64_t table_row;
  const int32_t* query_start;   // (num_seqs + 1,)
  const int32_t* context_lens;  // (num_seqs,)
  T* out;                       // (rows, num_heads, dim)
  float* partials;              // (num_seqs, num_heads, max_splits, partial_row); null where one split is enough
  int partial_row;
  int rows, num_seqs, num_heads, num_kv_heads, dim;
  Divider group, block_size;  // query heads a key/value head; keys of a block
  int max_context;  // keys beyond it are not read
  Splits splits;
  int max_splits;
  float scale_log2e;  // of the scores, positive, times log2(e)

  // Kept inside the rows, so that wrong starts read and write nothing else.
  __device__ __forceinline__ int start(int sequence) const { return max(0, min(query_start[sequence], rows)); }

  __device__ __forceinline__ float* partial(int sequence, int head, int split) const {
    return partials + ((int64_t(sequence) * num_heads + head) * max_splits + split) * partial_row;
  }
};

// Neighbouring packed rows of one sequence and one key/value head.
template <typename T>
struct PagedTile {
  const PagedArguments<T>& a;
  int sequence, kv_head;
  int start;   // query row of the sequence's first new token
  int before;  // keys that precede this token's own; negative for padding
  int first;   // packed row
  int count;   // of rows

  // The same tile of a whole sequence; rows are still to be chosen.
  __device__ __forceinline__ PagedTile(const PagedArguments<T>& a, int sequence, int kv_head)
      : a(a), sequence(sequence), kv_head(kv_head), start(a.start(sequence)), first(0), count(0) {
    const int length = a.start(sequence + 1) - start;
    before = a.context_lens[sequence] - length;
    count = max(0, length * a.group.divisor);
  }

  __device__ __forceinline__ void cut(int from, int most) {
    count = max(0, min(count - from, most));
    first = from;
  }

  __device__ __forceinline__ int head(int row) const {
    return kv_head * a.group.divisor + a.group.remainder(first + row);
  }
  __device__ __forceinline__ int64_t token(int row) const { return start + a.group.quotient(first + row); }
  __device__ __forceinline__ const T* query(int row) const {
    return a.query + token(row) * a.query_row + head(row) * a.query_head;
  }
  __device__ __forceinline__ T* out(int row) const { return a.out + (token(row) * a.num_heads + head(row)) * a.dim; }

  // Keys that a row sees; rows behind the last see what that sees, and are not written.
  __device__ __forceinline__ int seen_by(int row) const {
    const int last = before + a.group.quotient(first + min(row, count - 1)) + 1;
    return max(0, min(last, a.max_context));
  }
  __device__ __forceinline__ int seen() const { return seen_by(count - 1); }
};

// Where the keys, or the values, of a sequence and a head lie.
template <typename T>
struct PagedHead {
  const PagedArguments<T>& a;
  const int32_t* table;
  int64_t offset;  // of a thread's own elements: its head, and what the caller adds

  __device__ __forceinline__ explicit PagedHead(const PagedTile<T>& tile, int64_t added = 0)
      : a(tile.a), table(tile.a.tables + tile.sequence * tile.a.table_row),
        offset(tile.kv_head * tile.a.head_stride + added) {}

  __device__ __forceinline__ int block_of(int key) const { return table[a.block_size.quotient(key)]; }

  // Offset of a key's first element; those behind it in its block follow.
  __device__ __forceinline__ int64_t at(int key, int block) const {
    return block * a.block_stride + offset + a.block_size.remainder(key) * a.dim;
  }
  __device__ __forceinline__ int64_t at(int key) const { return at(key, block_of(key)); }
};

// The tile of this number when sequences of two new tokens and more are cut into tiles of `Rows` packed rows; a tile
// without rows where there is none. Sequence s has the tiles from starts[s] * group / Rows + s on, which leaves it
// enough of them; paged_tile_limit numbers cover all. A whole warp calls it.
template <int Rows, typename T>
__device__ __forceinline__ PagedTile<T> find_paged_tile(const PagedArguments<T>& a, int number, int kv_head) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const auto first_tile = [&](int sequence) { return a.start(sequence) * a.group.divisor / Rows + sequence; };
  int sequence = 0;  // the last whose first tile is not beyond `number` is this one or up to `count` - 1 further
  for (int count = a.num_seqs; count > 1;) {
    const int step = ceil_div(count, kWarpSize);
    const bool reached = lane * step < count && (lane == 0 || first_tile(sequence + lane * step) <= number);
    const int skipped = (__popc(__ballot_sync(kFullWarp, reached)) - 1) * step;
    sequence += skipped;
    count = min(step, count - skipped);
  }
  PagedTile<T> tile(a, sequence, kv_head);
  const int first = (number - first_tile(sequence)) * Rows;
  const bool none = tile.count <= a.group.divisor || first < 0;  // decoded, or before the first sequence
  tile.cut(first, none ? 0 : Rows);
  return tile;
}

constexpr int64_t paged_tile_limit(int64_t packed_rows, int64_t sequences, int rows) {
  return packed_rows / rows + sequences;
}

// Writes zeros where no sequence has rows (the padding of a captured batch), for one group of heads.
template <typename T>
__device__ __forceinline__ void clear_uncovered(const PagedArguments<T>& a, int kv_head) {
  const int begin = a.start(0), end = a.start(a.num_seqs);
  const int width = a.group.divisor * a.dim, uncovered = begin + max(0, a.rows - end);
  for (int row = 0; row < uncovered; ++row) {
    const int64_t at = row < begin ? row : end + row - begin;
    T* out = a.out + (at * a.num_kv_heads + kv_head) * width;
    for (int column = int(threadIdx.x); column < width; column += int(blockDim.x)) out[column] = from_float<T>(0.0f);
  }
}

// Adds up the splits of each decoded row, a warp for a row; rows of one split are complete.
template <typename T, int Columns>
__global__ void __launch_bounds__(kPagedThreads) paged_combine_kernel(const PagedArguments<T> a) {
  constexpr int kValues = Columns / kWarpSize;
  const int lane = int(threadIdx.x) % kWarpSize;
  const int index = int(blockIdx.x) * kPagedWarps + int(threadIdx.x) / kWarpSize;
  if (index >= a.num_seqs * a.num_heads) return;  // a whole warp, and warps do not meet
  const int sequence = index / a.num_heads, head = index % a.num_heads;
  const PagedTile<T> tile(a, sequence, a.group.quotient(head));
  if (tile.count != a.group.divisor) return;
  const int splits = a.splits.count(tile.seen());
  if (splits <= 1) return;

  PartialRow<kValues> total;
#pragma unroll 4
  for (int split = 0; split < splits; ++split) {
    const float* partial = a.partial(sequence, head, split);
    float values[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int column = lane + i * kWarpSize;
      values[i] = column < a.dim ? partial[kPartialHeader + column] : 0.0f;
    }
    total.add(partial[0], partial[1], values);
  }
  const float inverse = total.inverse();
  T* out = tile.out(a.group.remainder(head));
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int column = lane + i * kWarpSize;
    if (column < a.dim) out[column] = from_float<T>(total.values[i] * inverse);
  }
}

}  // namespace tessera
