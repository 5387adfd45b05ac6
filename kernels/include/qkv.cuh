// What the vision tower's attention reads, out of the product of its qkv layer: bias, rotation, the order of parts and
// heads, and zeros behind heads that no tensor core divides (72 -> 80 or 128), in one pass.
//
// Reads queries, keys and values once and writes them once; a thread has a pair of pieces of all three, so angles are
// loaded once for two rotations.
//
// Rounding: transformers rounds the linear layer's output, bias included, and rotates it in fp32. Where the product has
// its bias, so do we, to the bit. Where it does not, it was rounded before the bias came, and is not rounded again
// between bias and rotation: as many roundings either way.
//
// Next: kernels/csrc/qkv.cu
#pragma once

#include "rotary.cuh"

namespace tessera {

constexpr int kMaxQkvThreads = 512;

template <typename T>
struct QkvArguments {
  const T* qkv;  // (rows, 3 * heads * head_dim) with `stride` elements from row to row
  int64_t stride;
  const T* bias;           // (3 * heads * head_dim,); or null
  const float *cos, *sin;  // (rows, half)
  T* out;                  // (3, rows, heads, padded_dim)
  int64_t rows;
  int heads, head_dim, padded_dim, half;
};

// Quotients by a number that the launch knows, without a division; exact where number * divisor < 2^32.
struct Divisor {
  unsigned divisor, factor;

  __host__ explicit Divisor(unsigned by) : divisor(by), factor(0xffffffffu / by + 1) {}
  __device__ unsigned quotient(unsigned number) const { return divisor == 1 ? number : __umulhi(number, factor); }
};

// What a block has: `rows` whole rows; its threads take items, one piece of one head each, of all three parts.
struct QkvBlock {
  unsigned rows, items;
  Divisor pieces, heads;  // items of a head, heads of a row
};

// One part's two vectors of a piece, or of a bias.
template <typename T, int N>
struct Loaded {
  Packed<T, N> first, second;

  // Unconditional, so that it waits for no other; columns that a head does not have come from its beginning.
  __device__ void load(const T* from, const Piece& piece, int head_dim) {
    first = load_packed<N>(from + (piece.first < head_dim ? piece.first : 0));
    second = load_packed<N>(from + (piece.second < head_dim ? piece.second : 0));
  }

  // Zeros for columns that a head does not have.
  __device__ void get(float (&low)[N], float (&high)[N], const Piece& piece, int head_dim) const {
    unpack(low, piece.first < head_dim ? first : Packed<T, N>{});
    unpack(high, piece.second < head_dim ? second : Packed<T, N>{});
  }
};

template <typename T, int N>
__global__ void __launch_bounds__(kMaxQkvThreads) qkv_kernel(const QkvArguments<T> a, const QkvBlock block) {
  for (unsigned item = threadIdx.x; item < block.items; item += blockDim.x) {
    const unsigned head_of_block = block.pieces.quotient(item), row_of_block = block.heads.quotient(head_of_block);
    const int64_t row = int64_t(blockIdx.x) * block.rows + row_of_block;
    if (row >= a.rows) return;
    const int head = int(head_of_block - row_of_block * a.heads), part_width = a.heads * a.head_dim;
    const Piece piece = piece_of<N>(int(item - head_of_block * block.pieces.divisor), a.half);

    Loaded<T, N> loaded[3], bias[3] = {};
    Angles<N> angles;
    const T* from = a.qkv + row * a.stride + head * a.head_dim;
#pragma unroll
    for (int part = 0; part < 3; ++part) loaded[part].load(from + part * part_width, piece, a.head_dim);
    angles.load(a.cos + row * a.half, a.sin + row * a.half, piece);
    if (a.bias) {
#pragma unroll
      for (int part = 0; part < 3; ++part)
        bias[part].load(a.bias + part * part_width + head * a.head_dim, piece, a.head_dim);
    }
    T* to = a.out + (row * a.heads + head) * a.padded_dim;
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      float low[N], high[N], low_bias[N], high_bias[N];
      loaded[part].get(low, high, piece, a.head_dim);
      bias[part].get(low_bias, high_bias, piece, a.head_dim);
#pragma unroll
      for (int i = 0; i < N; ++i) low[i] += low_bias[i], high[i] += high_bias[i];
      if (part < 2) angles.rotate(low, high, piece);
      store_float<N>(to + piece.first, low);
      if (piece.second < a.padded_dim) store_float<N>(to + piece.second, high);
      to += a.rows * a.heads * a.padded_dim;
    }
  }
}

}  // namespace tessera
