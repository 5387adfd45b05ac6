// The instructions of include/ptx.cuh on the CPU: warp-wide matrix products and fragments, asynchronous copies.
//
// Fragment layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and "m16n8k8", "ldmatrix".
//
// Next: kernels/include/ptx.cuh
#pragma once

#include "simt.h"

namespace tessera {
namespace emulated {

template <typename T>
float half_of(uint32_t pair, int which) {
  const uint16_t bits = uint16_t(which ? pair >> 16 : pair);
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(value));
  return float(value);
}

template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char* slots = simt::exchange(simt::Collective::kMatrix, &mine, sizeof(mine));
  const unsigned group = simt::lane() / 4, member = simt::lane() % 4;
  for (int out = 0; out < 4; ++out) {
    const unsigned row_half = out / 2, column = member * 2 + out % 2;
    float sum = 0;
    for (unsigned k = 0; k < 16; ++k) {
      // a: register 0 and 1 hold rows g and g + 8 of the first eight columns, 2 and 3 of the others
      const auto left = simt::from_slot<Operands>(slots, group * 4 + k % 8 / 2);
      const auto right = simt::from_slot<Operands>(slots, column * 4 + k % 8 / 2);
      sum += half_of<T>(left.a[k / 8 * 2 + row_half], k % 2) * half_of<T>(right.b[k / 8], k % 2);
    }
    d[out] += sum;
  }
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    float a[4], b[2];
  } mine;
  constexpr uint32_t kSeen = 0xffffe000u;  // sign, exponent and ten bits
  for (int i = 0; i < 4; ++i) mine.a[i] = __uint_as_float(a[i] & kSeen);
  for (int i = 0; i < 2; ++i) mine.b[i] = __uint_as_float(b[i] & kSeen);
  const unsigned char* slots = simt::exchange(simt::Collective::kMatrix, &mine, sizeof(mine));
  const unsigned group = simt::lane() / 4, member = simt::lane() % 4;
  for (int out = 0; out < 4; ++out) {
    const unsigned row_half = out / 2, column = member * 2 + out % 2;
    float sum = 0;
    for (unsigned k = 0; k < 8; ++k) {
      // a: register 0 and 1 hold rows g and g + 8 of the first four columns, 2 and 3 of the others
      const auto left = simt::from_slot<Operands>(slots, group * 4 + k % 4);
      const auto right = simt::from_slot<Operands>(slots, column * 4 + k % 4);
      sum += left.a[k / 4 * 2 + row_half] * right.b[k / 4];
    }
    d[out] += sum;
  }
}

template <int Count, bool Transposed>
void ldmatrix(uint32_t (&out)[Count], const void* row) {
  const unsigned char* slots = simt::exchange(simt::Collective::kMatrix, &row, sizeof(row));
  const unsigned lane = simt::lane();
  for (unsigned matrix = 0; matrix < unsigned(Count); ++matrix) {
    uint16_t pair[2];
    for (unsigned which = 0; which < 2; ++which) {
      const unsigned line = Transposed ? lane % 4 * 2 + which : lane / 4;
      const unsigned column = Transposed ? lane / 4 : lane % 4 * 2 + which;
      const auto* source = simt::from_slot<const uint16_t*>(slots, matrix * 8 + line);
      pair[which] = source[column];
    }
    out[matrix] = uint32_t(pair[0]) | uint32_t(pair[1]) << 16;
  }
}

}  // namespace emulated
}  // namespace tessera
