// Where top-k and then top-p cut a row, exactly and without sorting it.
//
// Depths are counted in 256 bins, one a thread, finer where they are small; each bin's probability mass is a sum of
// integers (units of 2^-44 of the likeliest token's), so it does not depend on the order of additions. The bins say
// which tokens are inside for certain and which few bins hold the cut; a radix search over the bits of the depths in
// those bins then finds it. Equal depths are all inside or all outside.
//
// Next: kernels/include/sampling_race.cuh
#pragma once

#include "sampling.cuh"

namespace tessera {

constexpr int kBins = kSamplingThreads;
constexpr float kBinsOfRoot = 45.0f;      // sqrt(kMaxDepth) * 45 = 254.6
constexpr float kMassUnits = 0x1p44f;     // of mass 1: 2^19 tokens' mass fits 64 bits
constexpr float kMassUnit = 0x1p-44f;
constexpr uint32_t kAllBits = 0xffffffffu;

__device__ __forceinline__ int bin_of(float depth) { return int(sqrtf(depth) * kBinsOfRoot); }
__device__ __forceinline__ u64 mass_of(float depth) { return u64(expf(-depth) * kMassUnits); }

// The mass that the tokens before the last one of the nucleus stay below, of a total.
__device__ __forceinline__ u64 wanted_of(float top_p, u64 total) {
  const u64 wanted = u64(top_p * (float(total) * kMassUnit) * kMassUnits);
  return wanted ? wanted : 1;
}

// A row's bins in device memory, and how many candidates have been listed.
struct BinTotals {
  u64 mass[kBins];
  uint32_t count[kBins];
  uint32_t listed, unused[3];
};

// A block's bins: mass in two halves, since shared memory adds 32 bits at a time.
struct Bins {
  uint32_t* count;
  uint32_t* low;
  uint32_t* high;

  __device__ __forceinline__ void clear() const {
    const int bin = int(threadIdx.x);
    count[bin] = low[bin] = high[bin] = 0;
  }
  __device__ __forceinline__ void add(int bin, u64 mass) const {
    atomicAdd(&count[bin], 1u);
    if (!mass) return;
    const uint32_t before = atomicAdd(&low[bin], uint32_t(mass));
    const uint32_t carry = before + uint32_t(mass) < before;
    if (const uint32_t above = uint32_t(mass >> 32) + carry) atomicAdd(&high[bin], above);
  }
  __device__ __forceinline__ u64 mass(int bin) const { return u64(high[bin]) << 32 | low[bin]; }
};

#define SHARED_BINS(name)                      \
  SHARED(uint32_t, name##_words, 3 * kBins);   \
  const Bins name { name##_words, name##_words + kBins, name##_words + 2 * kBins }

// What one thread's bin has, and what it and those before it have together.
struct Running {
  u64 count, mass, count_until, mass_until;

  __device__ __forceinline__ bool holds_count(u64 target) const {
    return count_until - count < target && target <= count_until;
  }
  __device__ __forceinline__ bool holds_mass(u64 target) const {
    return mass_until - mass < target && target <= mass_until;
  }
};

__device__ __forceinline__ u64 scan_block(u64 value, u64* scratch) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const u64 before = __shfl_up_sync(kFullWarp, value, distance);
    if (lane >= distance) value += before;
  }
  if (lane == kWarpSize - 1) scratch[warp] = value;
  __syncthreads();
  for (int other = 0; other < warp; ++other) value += scratch[other];
  __syncthreads();
  return value;
}

__device__ __forceinline__ Running running(u64 count, u64 mass, u64* scratch) {
  return {count, mass, scan_block(count, scratch), scan_block(mass, scratch)};
}

// Bins before `low` are inside both cuts. Candidates are what lies in [low, high], where top-p cuts, and in `k_bin`,
// where top-k does; all else is outside. kBins means: nowhere.
struct Cut {
  int low, high, k_bin;
  uint32_t k_left;       // tokens of k_bin that top-k keeps
  uint32_t candidates;   // their number
  u64 before_low;        // mass of the bins before `low`
  u64 before_k, through_k;  // mass of the bins before k_bin, and with it
  u64 total;             // mass of all bins

  __device__ __forceinline__ bool is_candidate(int bin) const { return (bin >= low && bin <= high) || bin == k_bin; }
};

// Reads off a row's bins where its cuts are. Top-p takes its share of what top-k has left, which is known only up to
// the part of k_bin that is kept: so the share's end lies between two bins.
__device__ __forceinline__ Cut find_cut(const SamplingRow& row, const BinTotals& totals, u64* scratch) {
  SHARED(Cut, found, 1);
  const int bin = int(threadIdx.x);
  const Running own = running(totals.count[bin], totals.mass[bin], scratch);
  if (bin == 0) *found = {kBins, kBins, kBins, 0, 0, 0, 0, 0, 0};
  __syncthreads();
  if (bin == kBins - 1) found->total = own.mass_until;
  if (row.top_k > 0 && own.holds_count(row.top_k)) {
    found->k_bin = bin;
    found->k_left = uint32_t(row.top_k - (own.count_until - own.count));
    found->before_k = own.mass_until - own.mass;
    found->through_k = own.mass_until;
  }
  __syncthreads();
  if (row.top_p < 1.0f) {
    const bool counted = found->k_bin < kBins;
    const u64 least = counted ? found->before_k : found->total, most = counted ? found->through_k : found->total;
    if (own.holds_mass(wanted_of(row.top_p, least))) {
      found->low = bin;
      found->before_low = own.mass_until - own.mass;
    }
    if (own.holds_mass(wanted_of(row.top_p, most))) found->high = bin;
  }
  __syncthreads();
  if (bin == 0 && found->low >= found->k_bin) {
    found->low = found->k_bin;
    found->before_low = found->before_k;
  }
  if (bin == 0) found->high = min(found->high, found->k_bin);
  __syncthreads();
  if (own.count && found->is_candidate(bin)) atomicAdd(&found->candidates, uint32_t(own.count));
  __syncthreads();
  return *found;
}

// How far a search went: the bits of a depth, and what lies before it.
struct Found {
  uint32_t bits;
  u64 count_before, mass_before;
};

// Returns the depth at which the running count, or mass, of the visited ones first reaches the target; kAllBits where
// it never does. visit(f) calls f(depth) for each depth, each on one thread of the block.
template <bool ByMass, typename Visit>
__device__ __forceinline__ Found search(const Visit& visit, u64 target, const Bins& bins, u64* scratch) {
  SHARED(Found, found, 1);
  SHARED(uint32_t, digit, 1);
  Found result{0, 0, 0};
  for (int shift = 24; shift >= 0; shift -= 8) {
    bins.clear();
    if (threadIdx.x == 0) *digit = kAllBits;
    __syncthreads();
    visit([&](float depth) {
      const uint32_t bits = __float_as_uint(depth);
      if (shift == 24 || bits >> (shift + 8) == result.bits) bins.add(bits >> shift & 0xff, mass_of(depth));
    });
    __syncthreads();
    const int bin = int(threadIdx.x);
    const Running own = running(bins.count[bin], bins.mass(bin), scratch);
    const u64 before = ByMass ? result.mass_before : result.count_before;
    if (ByMass ? own.holds_mass(target - before) : own.holds_count(target - before)) {
      *digit = uint32_t(bin);
      *found = {result.bits << 8 | uint32_t(bin), result.count_before + own.count_until - own.count,
                result.mass_before + own.mass_until - own.mass};
    }
    __syncthreads();
    if (*digit == kAllBits) return {kAllBits, 0, 0};
    result = *found;
    __syncthreads();
  }
  return result;
}

// Returns the bits of the deepest depth inside both cuts. visit(f) calls f(depth, bin) for each candidate.
template <typename Visit>
__device__ __forceinline__ uint32_t depth_limit(const SamplingRow& row, const Cut& cut, const Visit& visit,
                                                const Bins& bins, u64* scratch) {
  uint32_t limit = kAllBits;
  u64 total = cut.total;
  if (cut.k_bin < kBins) {
    const auto last = [&](auto f) {
      visit([&](float depth, int bin) {
        if (bin == cut.k_bin) f(depth);
      });
    };
    const Found kth = search<false>(last, cut.k_left, bins, scratch);
    limit = kth.bits;
    total = cut.before_k + kth.mass_before + (cut.k_left - kth.count_before) * mass_of(__uint_as_float(kth.bits));
  }
  if (row.top_p < 1.0f && cut.low < kBins) {
    const u64 wanted = wanted_of(row.top_p, total);
    const auto nucleus = [&](auto f) {
      visit([&](float depth, int bin) {
        if (bin >= cut.low && bin <= cut.high) f(depth);
      });
    };
    const u64 target = wanted > cut.before_low ? wanted - cut.before_low : 1;
    limit = min(limit, search<true>(nucleus, target, bins, scratch).bits);
  }
  return limit;
}

}  // namespace tessera
