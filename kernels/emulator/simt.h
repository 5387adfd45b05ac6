// CUDA's execution model on the CPU: what device code needs of it, for tests on machines without a GPU.
//
// A block's threads are fibers of one OS thread; a fiber runs until it waits (for its warp or for its block), then the
// next one does. Blocks run one after the other. Three things make mistakes show that a GPU would hide:
//
// - shared memory is poisoned with NaN before each block, and asynchronous copies happen only when they are waited for;
// - threads run in a chosen order, so that what is read before a barrier that is missing differs from order to order;
// - a collective that not all lanes of a warp reach, or a barrier that a thread has left before, ends the launch with
//   an error, as do a vector that is not aligned and more shared memory than the smallest supported device has.
//
// Arithmetic is the host's: results agree with a GPU's up to rounding, not bit for bit.
//
// Next: kernels/include/platform.cuh
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#undef __launch_bounds__
#define __launch_bounds__(...)

namespace simt {

constexpr int kWarp = 32;
constexpr int kSlotBytes = 64;
constexpr size_t kSharedLimit = 99 * 1024;  // bytes a block may have on sm_86, sm_89 and sm_120

enum class Collective { kNone, kSync, kShuffle, kVote, kMatrix };
enum class Order { kForward, kBackward };

struct Copy {
  void* to;
  const void* from;
  int bytes, filled;  // bytes that are copied, and bytes of zeros behind them
};

struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};

const Position& position();
unsigned lane();

// Every lane brings `bytes` (at most kSlotBytes); returns the slots of all lanes once all have come.
const unsigned char* exchange(Collective kind, const void* mine, size_t bytes);
void block_barrier();

void* shared_array(const void* key, size_t bytes);
void* dynamic_shared();

// Ends the launch where an access of so many bytes at once would fault.
void check_alignment(const void* address, size_t bytes);

void copy_async(const Copy& copy);
void commit_copies();
void wait_copies(int pending);

// Runs `body` once for each thread of each block; throws std::runtime_error on a misuse listed above.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

template <typename T>
T from_slot(const unsigned char* slots, unsigned lane) {
  T value;
  std::memcpy(&value, slots + lane * kSlotBytes, sizeof(T));
  return value;
}

template <typename T>
T shuffle(T value, unsigned from) {
  static_assert(sizeof(T) <= kSlotBytes, "a shuffled value fits a slot");
  return from_slot<T>(exchange(Collective::kShuffle, &value, sizeof(T)), from & (kWarp - 1));
}

inline unsigned ballot(bool mine) {
  const unsigned char* slots = exchange(Collective::kVote, &mine, sizeof(mine));
  unsigned mask = 0;
  for (unsigned other = 0; other < kWarp; ++other) mask |= unsigned(from_slot<bool>(slots, other)) << other;
  return mask;
}

}  // namespace simt

#define threadIdx (simt::position().thread)
#define blockIdx (simt::position().block)
#define blockDim (simt::position().block_size)
#define gridDim (simt::position().grid_size)

// Collectives take the whole warp: the mask says so, and lanes that stay away end the launch.
inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned = 0xffffffffu) { simt::exchange(simt::Collective::kSync, nullptr, 0); }
template <typename T>
T __shfl_sync(unsigned, T value, int from) {
  return simt::shuffle(value, unsigned(from));
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return simt::shuffle(value, simt::lane() ^ unsigned(mask));
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  return simt::shuffle(value, simt::lane() < delta ? simt::lane() : simt::lane() - delta);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  return simt::shuffle(value, simt::lane() + delta < unsigned(simt::kWarp) ? simt::lane() + delta : simt::lane());
}
inline unsigned __ballot_sync(unsigned, int mine) { return simt::ballot(mine != 0); }
inline int __any_sync(unsigned, int mine) { return simt::ballot(mine != 0) != 0; }
inline int __all_sync(unsigned, int mine) { return simt::ballot(mine != 0) == 0xffffffffu; }
inline unsigned __reduce_max_sync(unsigned, unsigned mine) {
  const unsigned char* slots = simt::exchange(simt::Collective::kVote, &mine, sizeof(mine));
  for (unsigned other = 0; other < simt::kWarp; ++other) mine = std::max(mine, simt::from_slot<unsigned>(slots, other));
  return mine;
}

// Threads take turns only where they wait, so plain updates are atomic.
template <typename T>
T atomicAdd(T* at, std::common_type_t<T> value) {
  T before = *at;
  *at = before + value;
  return before;
}
template <typename T>
T atomicMax(T* at, std::common_type_t<T> value) {
  T before = *at;
  *at = before > value ? before : value;
  return before;
}
template <typename T>
T atomicCAS(T* at, std::common_type_t<T> expected, std::common_type_t<T> value) {
  T before = *at;
  if (before == expected) *at = value;
  return before;
}
inline void __threadfence() {}

template <typename T>
T __ldg(const T* at) {
  return *at;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmul_rn(float x, float y) { return x * y; }  // the baseline of x86-64 fuses nothing
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __saturatef(float x) { return std::min(std::max(x, 0.0f), 1.0f); }
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}
inline unsigned __float_as_uint(float x) { return unsigned(__float_as_int(x)); }
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(int(bits)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int bit = 0; bit < 32; ++bit) out |= ((x >> bit) & 1u) << (31 - bit);
  return out;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned out = 0;
  for (int at = 0; at < 4; ++at) out |= unsigned(bytes >> 8 * (selector >> 4 * at & 7) & 0xff) << 8 * at;
  return out;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
using std::max;
using std::min;
