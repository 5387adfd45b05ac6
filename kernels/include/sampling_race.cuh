// Sampling, in two to five launches over (rows, slices) or (rows):
//
// 1. slices: each slice's likeliest token and, for log probabilities, its sum of exponentials;
// 2. top: each slice's likeliest tokens, in order, where a row asks for them (sampling_top.cuh);
// 3. bins: depths and masses, where top-k or top-p cut;
// 4. race: of the tokens that are inside for certain, and a list of the candidates; not where all rows are greedy;
// 5. finish: cuts among the candidates, ends the race, writes what was drawn.
//
// A launch reads all logits once: greedy rows are read once, random ones twice, cut ones three times, the second and
// third time from the second-level cache where it holds the batch. No step depends on the order of threads.
//
// Next: kernels/include/sampling_top.cuh
#pragma once

#include "reduce.cuh"
#include "sampling_cut.cuh"

namespace tessera {

constexpr int kMaxCandidates = 4096;  // listed; where there are more, their row is read again instead

struct SliceSummary {
  u64 best;               // of the scores
  float raw_max, raw_sum;  // of the logits, and of exp(logit - raw_max)
};

struct Candidate {
  float depth;
  int token;
};

template <typename T>
struct SamplingArguments {
  const T* logits;
  int64_t stride;  // elements from row to row
  bool vectors;    // rows begin at multiples of a vector; likewise below
  const float* changed;  // (any, vocab_size), or null
  bool changed_vectors;
  const SamplingRow* rows;
  int num_rows;
  int vocab_size;
  int slices;
  int num_top;  // words of `out`: the token; from 0 on its log probability; that many tokens, their log probabilities
  int32_t* out;
  // between launches
  SliceSummary* summaries;  // (rows, slices)
  u64* raced;               // (rows, slices); null: all rows are greedy
  u64* top;                 // (rows, slices, num_top)
  BinTotals* totals;        // (rows,); null: nothing is cut
  Candidate* candidates;    // (rows, kMaxCandidates)

  __device__ __forceinline__ bool is_random(const SamplingRow& row) const { return raced && row.temperature != 0.0f; }
  __device__ __forceinline__ bool is_cut(const SamplingRow& row) const {
    return totals && row.temperature != 0.0f && (row.top_k > 0 || row.top_p < 1.0f);
  }
};

template <typename T>
__device__ __forceinline__ void load_scores(float (&scores)[kScoresPerThread], const SamplingArguments<T>& a,
                                            const SamplingRow& row, int begin) {
  if (row.changed >= 0)
    load_slice(scores, a.changed + row.changed * int64_t(a.vocab_size), begin, a.vocab_size, a.changed_vectors);
  else
    load_slice(scores, a.logits + row.source * a.stride, begin, a.vocab_size, a.vectors);
}

// The row's likeliest token; every warp finds it by itself.
template <typename T>
__device__ __forceinline__ u64 likeliest_of(const SamplingArguments<T>& a, int number) {
  u64 best = 0;
  for (int slice = int(threadIdx.x) % kWarpSize; slice < a.slices; slice += kWarpSize)
    best = max(best, a.summaries[int64_t(number) * a.slices + slice].best);
  return warp_max(best);
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads) sampling_slices_kernel(const SamplingArguments<T> a) {
  SHARED(u64, scratch, kWarpSize);
  SHARED(float, sums, kWarpSize);
  const int number = int(blockIdx.x) / a.slices, slice = int(blockIdx.x) % a.slices, begin = slice * kSliceLength;
  const SamplingRow row = a.rows[number];
  if (a.totals && slice == 0) {
    BinTotals& totals = a.totals[number];
    totals.mass[threadIdx.x] = totals.count[threadIdx.x] = 0;
    if (threadIdx.x == 0) totals.listed = 0;
  }
  float scores[kScoresPerThread];
  load_scores(scores, a, row, begin);
  u64 best = 0;
#pragma unroll
  for (int i = 0; i < kScoresPerThread; ++i) best = max(best, ranked(scores[i], token_at(begin, i)));
  SliceSummary summary{block_max(best, scratch), 0.0f, 0.0f};
  if (row.num_top >= 0) {
    if (row.changed >= 0) load_slice(scores, a.logits + row.source * a.stride, begin, a.vocab_size, a.vectors);
    float largest = Max::kNeutral, sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) largest = fmaxf(largest, scores[i]);
    summary.raw_max = reduce_block<Max>(largest, sums);
#pragma unroll
    for (int i = 0; i < kScoresPerThread; ++i) sum += expf(scores[i] - summary.raw_max);
    summary.raw_sum = reduce_block<Sum>(sum, sums);
  }
  if (threadIdx.x == 0) a.summaries[blockIdx.x] = summary;
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads) sampling_bins_kernel(const SamplingArguments<T> a) {
  SHARED_BINS(bins);
  const int number = int(blockIdx.x) / a.slices, begin = int(blockIdx.x) % a.slices * kSliceLength;
  const SamplingRow row = a.rows[number];
  if (!a.is_cut(row)) return;
  float scores[kScoresPerThread];
  load_scores(scores, a, row, begin);
  const float largest = score_of(likeliest_of(a, number));
  bins.clear();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kScoresPerThread; ++i) {
    const float depth = (largest - scores[i]) / row.temperature;
    if (depth <= kMaxDepth) bins.add(bin_of(depth), row.top_p < 1.0f ? mass_of(depth) : 0);
  }
  __syncthreads();
  const int bin = int(threadIdx.x);
  if (bins.count[bin] == 0) return;
  atomicAdd(&a.totals[number].count[bin], bins.count[bin]);
  atomicAdd(&a.totals[number].mass[bin], bins.mass(bin));
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads) sampling_race_kernel(const SamplingArguments<T> a) {
  SHARED(u64, scratch, kWarpSize);
  const int number = int(blockIdx.x) / a.slices, begin = int(blockIdx.x) % a.slices * kSliceLength;
  const SamplingRow row = a.rows[number];
  if (!a.is_random(row)) return;
  float scores[kScoresPerThread];
  load_scores(scores, a, row, begin);
  const u64 likeliest = likeliest_of(a, number);
  const bool cuts = a.is_cut(row);
  const Cut cut = cuts ? find_cut(row, a.totals[number], scratch) : Cut{};
  const bool lists = cuts && cut.candidates <= kMaxCandidates;
  Race race(row.key, token_of(likeliest));
#pragma unroll
  for (int i = 0; i < kScoresPerThread; ++i) {
    const int token = token_at(begin, i);
    const float depth = (score_of(likeliest) - scores[i]) / row.temperature;
    if (!(depth <= kMaxDepth)) continue;  // NaN, where the largest score is not finite
    if (cuts && bin_of(depth) >= cut.low) {
      if (lists && cut.is_candidate(bin_of(depth)))
        a.candidates[number * int64_t(kMaxCandidates) + atomicAdd(&a.totals[number].listed, 1u)] = {depth, token};
    } else if (depth <= row.reach) {
      race.enter(row.key, token, depth);
    }
  }
  const u64 best = block_max(race.best, scratch);
  if (threadIdx.x == 0) a.raced[blockIdx.x] = best;
}

// Calls f(depth, token, bin) for each candidate of a row, each on one thread of the block.
template <typename T, typename F>
__device__ __forceinline__ void visit_candidates(const SamplingArguments<T>& a, const SamplingRow& row, int number,
                                                 const Cut& cut, float largest, const F& f) {
  if (cut.candidates <= kMaxCandidates) {
    for (int i = int(threadIdx.x); i < int(cut.candidates); i += kSamplingThreads) {
      const Candidate candidate = a.candidates[number * int64_t(kMaxCandidates) + i];
      f(candidate.depth, candidate.token, bin_of(candidate.depth));
    }
    return;
  }
  const float* changed = a.changed + row.changed * int64_t(a.vocab_size);
  const T* logits = a.logits + row.source * a.stride;
  for (int token = int(threadIdx.x); token < a.vocab_size; token += kSamplingThreads) {
    const float score = row.changed >= 0 ? changed[token] : to_float(logits[token]);
    const float depth = (largest - score) / row.temperature;
    if (depth <= kMaxDepth && cut.is_candidate(bin_of(depth))) f(depth, token, bin_of(depth));
  }
}

// The token that a row gives.
template <typename T>
__device__ __forceinline__ int drawn_token(const SamplingArguments<T>& a, const SamplingRow& row, int number,
                                           u64* scratch) {
  SHARED_BINS(bins);
  const u64 likeliest = likeliest_of(a, number);
  if (!a.is_random(row)) return token_of(likeliest);
  u64 best = 0;
  for (int slice = int(threadIdx.x); slice < a.slices; slice += kSamplingThreads)
    best = max(best, a.raced[int64_t(number) * a.slices + slice]);
  if (a.is_cut(row)) {
    const Cut cut = find_cut(row, a.totals[number], scratch);
    const auto visit = [&](const auto& f) { visit_candidates(a, row, number, cut, score_of(likeliest), f); };
    const auto depths = [&](const auto& f) { visit([&](float depth, int, int bin) { f(depth, bin); }); };
    const uint32_t limit = depth_limit(row, cut, depths, bins, scratch);
    Race race(row.key, token_of(likeliest));
    visit([&](float depth, int token, int) {
      if (__float_as_uint(depth) <= limit && depth <= row.reach) race.enter(row.key, token, depth);
    });
    best = max(best, race.best);
  }
  return token_of(block_max(best, scratch));
}

}  // namespace tessera
