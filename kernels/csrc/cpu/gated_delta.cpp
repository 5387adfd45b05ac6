// Linear attention with a carried state, in fp32: causal depthwise convolution, gated delta rule, gated norm.
//
// Sequences lie one after the other (varlen), prefill chunks and decodes alike. Each has a slot in the state tensors,
// updated in place; one whose cache length is its number of new tokens starts from zero, whatever the slot holds. An
// empty one leaves its slot alone.
//
// The delta rule is run as it is defined, token by token. Columns of the state do not depend on each other, so a task
// (one head of one sequence) takes a stripe of columns through a run of tokens while that stripe stays in the first
// cache: each token costs arithmetic only, the state is read and written once a run.
//
// Reference: tessera_kernels/gated_delta.py
// Next: kernels/csrc/cpu/pointwise.cpp

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "vec.h"

namespace {

using namespace tessera;

constexpr long kAlone = 16384;     // floats up to which one thread does it all
constexpr long kMostTaps = 16;     // of the convolution; checked by the caller
constexpr long kChannelBlock = 256;
constexpr long kRun = 64;          // tokens that a stripe goes through at a time
constexpr int kStripe = 32;        // columns of a stripe: 16 KiB with 128 rows
constexpr int kVectors = kStripe / kLanes;
constexpr int kWays = kVectors == 2 ? 4 : 2;  // rows summed apart, which hides the latency of the additions

// One sequence of the batch.
struct Segment {
  long first, length, slot;
  bool fresh;
};

Segment segment(long index, const int64_t* slots, const int32_t* query_start, const int32_t* context_lens) {
  const long first = query_start[index], length = query_start[index + 1] - first;
  return {first, length, static_cast<long>(slots[index]), context_lens[index] == length};
}

float* scratch(size_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < floats) memory.resize(floats);
  return memory.data();
}

// A block of channels of one sequence. `history`: the inputs before the first token, oldest first.
void convolve(const float* x, long stride, const float* weight, long channels, long taps, const float* history,
              long length, long count, float* out) {
  alignas(64) float sums[kChannelBlock];
  const long padded = (count + kLanes - 1) / kLanes * kLanes;
  std::fill(sums, sums + padded, 0.0f);
  for (long token = 0; token < length; ++token) {
    for (long tap = 0; tap < taps; ++tap) {
      const long at = token + tap - (taps - 1);
      const float* from = at < 0 ? history + (at + taps - 1) * kChannelBlock : x + at * stride;
      const float* factor = weight + tap * channels;
      if (tap == 0) {
#pragma omp simd
        for (long i = 0; i < count; ++i) sums[i] = factor[i] * from[i];
      } else {
#pragma omp simd
        for (long i = 0; i < count; ++i) sums[i] += factor[i] * from[i];
      }
    }
    for (long i = 0; i < padded; i += kLanes) store(sums + i, silu(load(sums + i)));
    std::copy(sums, sums + count, out + token * channels);
  }
}

// What the tokens of a run share over all stripes: rows of `rows` floats each, zero beyond key_dim.
struct Run {
  float *queries, *keys, *decays, *betas;
  long rows;
};

// to = from * scale / |from|, with the sum of squares raised by epsilon.
void unit(const float* from, long count, long rows, float scale, float* to) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < count; ++i) sum += from[i] * from[i];
  const float factor = scale / std::sqrt(sum + 1e-6f);
#pragma omp simd
  for (long i = 0; i < count; ++i) to[i] = from[i] * factor;
  for (long i = count; i < rows; ++i) to[i] = 0;
}

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// One token on a stripe: state *= decay; delta = beta * (value - key . state); state += key x delta; query . state.
inline void step(float* state, const Run& run, long token, const float* value, float* out) {
  const float *key = run.keys + token * run.rows, *query = run.queries + token * run.rows;
  const float decay = run.decays[token];
  vfloat sums[kWays][kVectors] = {};
  for (long row = 0; row < run.rows; row += kWays)
    for (int way = 0; way < kWays; ++way)
      for (int v = 0; v < kVectors; ++v)
        sums[way][v] += load(state + (row + way) * kStripe + v * kLanes) * splat(key[row + way]);
  vfloat delta[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    for (int way = 1; way < kWays; ++way) sums[0][v] += sums[way][v];
    delta[v] = (load(value + v * kLanes) - sums[0][v] * splat(decay)) * splat(run.betas[token]);
  }
  vfloat results[kWays][kVectors] = {};
  for (long row = 0; row < run.rows; row += kWays)
    for (int way = 0; way < kWays; ++way)
      for (int v = 0; v < kVectors; ++v) {
        float* at = state + (row + way) * kStripe + v * kLanes;
        const vfloat changed = load(at) * splat(decay) + delta[v] * splat(key[row + way]);
        store(at, changed);
        results[way][v] += changed * splat(query[row + way]);
      }
  for (int v = 0; v < kVectors; ++v) {
    for (int way = 1; way < kWays; ++way) results[0][v] += results[way][v];
    store(out + v * kLanes, results[0][v]);
  }
}

// Takes columns [column, column + width) of a head's state through the tokens of a run. values, out: of its first token.
void run_stripe(float* state, long value_dim, long key_dim, long column, bool fresh, const Run& run, long tokens,
                const float* values, long stride, float* out, long out_stride, float* stripe) {
  const long width = std::min<long>(kStripe, value_dim - column);
  std::fill(stripe, stripe + run.rows * kStripe, 0.0f);
  if (!fresh)
    for (long row = 0; row < key_dim; ++row) {
      const float* from = state + row * value_dim + column;
      std::copy(from, from + width, stripe + row * kStripe);
    }
  alignas(64) float value[kStripe] = {}, result[kStripe];
  for (long token = 0; token < tokens; ++token) {
    const float* from = values + token * stride + column;
    std::copy(from, from + width, value);
    step(stripe, run, token, value, result);
    std::copy(result, result + width, out + token * out_stride + column);
  }
  for (long row = 0; row < key_dim; ++row)
    std::copy(stripe + row * kStripe, stripe + row * kStripe + width, state + row * value_dim + column);
}

}  // namespace

// out = silu(sum over taps of weight[tap] * input), inputs before the first token taken from the state.
//
// x: (n, channels), rows `stride` apart. weight: (taps, channels). states: (slots, channels, taps - 1), oldest first,
// which holds the newest inputs afterwards. out: (n, channels).
TESSERA_EXPORT void tessera_causal_conv(const float* x, long stride, const float* weight, float* states,
                                        const int64_t* slots, const int32_t* query_start, const int32_t* context_lens,
                                        float* out, long sequences, long channels, long taps, int threads) {
  const long blocks = (channels + kChannelBlock - 1) / kChannelBlock, carried = taps - 1;
  const long floats = query_start[sequences] * channels;
#pragma omp parallel for collapse(2) num_threads(floats <= kAlone ? 1 : threads) schedule(dynamic, 1)
  for (long index = 0; index < sequences; ++index) {
    for (long block = 0; block < blocks; ++block) {
      const Segment part = segment(index, slots, query_start, context_lens);
      if (part.length == 0) continue;
      const long from = block * kChannelBlock, count = std::min(kChannelBlock, channels - from);
      float* state = states + (part.slot * channels + from) * carried;
      const float* input = x + part.first * stride + from;
      float history[kMostTaps * kChannelBlock];
      for (long tap = 0; tap < carried; ++tap)
        for (long i = 0; i < count; ++i)
          history[tap * kChannelBlock + i] = part.fresh ? 0.0f : state[i * carried + tap];
      convolve(input, stride, weight + from, channels, taps, history, part.length, count,
               out + part.first * channels + from);
      for (long tap = 0; tap < carried; ++tap) {
        const long at = part.length + tap - carried;
        const float* newest = at < 0 ? history + (at + carried) * kChannelBlock : input + at * stride;
        for (long i = 0; i < count; ++i) state[i * carried + tap] = newest[i];
      }
    }
  }
}

// The gated delta rule over queries, keys and values side by side.
//
// qkv: (n, 2 * key_heads * key_dim + heads * value_dim), rows `stride` apart. gates: (n, 2 * heads), rows `gate_stride`
// apart: update gate b, then decay gate a. rate: (heads), exp(A_log); bias: (heads). states: (slots, heads, key_dim,
// value_dim). out: (n, heads, value_dim).
TESSERA_EXPORT void tessera_gated_delta_rule(const float* qkv, long stride, const float* gates, long gate_stride,
                                             const float* rate, const float* bias, float* states, const int64_t* slots,
                                             const int32_t* query_start, const int32_t* context_lens, float* out,
                                             long sequences, long key_heads, long heads, long key_dim, long value_dim,
                                             int threads) {
  const long rows = (key_dim + kWays - 1) / kWays * kWays, key_floats = key_heads * key_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(key_dim));
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 1)
  for (long index = 0; index < sequences; ++index) {
    for (long head = 0; head < heads; ++head) {
      const Segment part = segment(index, slots, query_start, context_lens);
      const long most = std::min(kRun, part.length);
      float* memory = scratch(rows * kStripe + most * (2 * rows + 2));
      float* stripe = memory;
      const Run run = {stripe + rows * kStripe, stripe + rows * kStripe + most * rows,
                       stripe + rows * kStripe + most * 2 * rows, stripe + rows * kStripe + most * (2 * rows + 1), rows};
      float* state = states + (part.slot * heads + head) * key_dim * value_dim;
      for (long start = 0; start < part.length; start += kRun) {
        const long tokens = std::min(kRun, part.length - start), first = part.first + start;
        for (long token = 0; token < tokens; ++token) {
          const float* query = qkv + (first + token) * stride + head / (heads / key_heads) * key_dim;
          unit(query, key_dim, rows, scale, run.queries + token * rows);
          unit(query + key_floats, key_dim, rows, 1.0f, run.keys + token * rows);
          const float* gate = gates + (first + token) * gate_stride + head;
          run.betas[token] = sigmoid(gate[0]);
          run.decays[token] = std::exp(-rate[head] * softplus(gate[heads] + bias[head]));
        }
        const float* values = qkv + first * stride + 2 * key_floats + head * value_dim;
        float* to = out + (first * heads + head) * value_dim;
        for (long column = 0; column < value_dim; column += kStripe)
          run_stripe(state, value_dim, key_dim, column, part.fresh && start == 0, run, tokens, values, stride, to,
                     heads * value_dim, stripe);
      }
    }
  }
}

// out = x / rms(x) * weight * silu(gate), head by head. x, out: (n, heads, dim); gate: the same, rows `stride` apart.
TESSERA_EXPORT void tessera_gated_rms_norm(const float* x, const float* gate, long stride, const float* weight,
                                           float* out, long n, long heads, long dim, float eps, int threads) {
  const long whole = dim / kLanes * kLanes;
#pragma omp parallel for num_threads(n * heads * dim <= kAlone ? 1 : threads) schedule(static)
  for (long row = 0; row < n * heads; ++row) {
    const float *from = x + row * dim, *by = gate + row / heads * stride + row % heads * dim;
    float* to = out + row * dim;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < dim; ++i) sum += from[i] * from[i];
    const float factor = 1.0f / std::sqrt(sum / dim + eps);
    for (long i = 0; i < whole; i += kLanes)
      store(to + i, load(from + i) * splat(factor) * load(weight + i) * silu(load(by + i)));
    for (long i = whole; i < dim; ++i) to[i] = from[i] * factor * weight[i] * (by[i] * sigmoid(by[i]));
  }
}
