// Logits as a request changes them: token mask, bias, repetition, frequency and presence penalties.
//
// Rows that nothing changes are left alone. A block copies one slice of a row into shared memory, changes there what
// its row's lists name, and writes it: logits are read once and written once, a row's lists once for each of its
// slices, from the second cache. Products are rounded before they are subtracted, as on the CPU. The token of the step
// before, which the host may not know yet, is read where it was drawn and counted once more.
//
// Next: kernels/csrc/penalties.cu
#pragma once

#include "sampling.cuh"

namespace tessera {

// One row to change, as the host writes it (CHANGE in tessera_kernels/sampling.py); ends are not included.
struct ChangedRow {
  int32_t source;  // row of the logits
  int32_t bias_begin, bias_end;
  int32_t seen_begin, seen_end;
  float repetition, frequency, presence;
  int32_t drawn;  // row of the draws whose token has been generated besides, or -1
};

// A token with its bias, or with how often it was generated (0: it is the prompt's alone).
struct TokenValue {
  int32_t token;
  float value;
};

template <typename T>
struct PenaltyArguments {
  const T* logits;
  int64_t stride;  // elements from row to row
  bool vectors;    // rows begin at multiples of a vector
  const ChangedRow* rows;
  const TokenValue* biases;  // a token at most once a row; likewise below
  const TokenValue* seen;
  const int32_t* drawn;     // tokens of the step before, `drawn_stride` words apart; or null
  int64_t drawn_stride;
  const uint32_t* allowed;  // (rows, ceil(vocab_size / 32)), token t's bit in word t / 32; or null
  float* out;               // (rows, vocab_size)
  int vocab_size;
  int slices;
};

__device__ __forceinline__ float penalised(float score, const ChangedRow& row, float generated) {
  score = score > 0.0f ? score / row.repetition : __fmul_rn(score, row.repetition);
  score = __fsub_rn(score, __fmul_rn(row.frequency, generated));
  return generated > 0.0f ? __fsub_rn(score, row.presence) : score;
}

template <typename T>
__global__ void __launch_bounds__(kSamplingThreads) penalties_kernel(const PenaltyArguments<T> a) {
  SHARED(float, slice, kSliceLength);
  SHARED(float, before, 1);  // how often the drawn token had been generated already
  const int number = int(blockIdx.x) / a.slices, begin = int(blockIdx.x) % a.slices * kSliceLength;
  const int length = min(kSliceLength, a.vocab_size - begin), thread = int(threadIdx.x);
  const ChangedRow row = a.rows[number];
  const int drawn = a.drawn && row.drawn >= 0 ? a.drawn[row.drawn * a.drawn_stride] : -1;
  if (thread == 0) before[0] = 0.0f;
  float scores[kScoresPerThread];
  load_slice(scores, a.logits + row.source * a.stride, begin, a.vocab_size, a.vectors);
#pragma unroll
  for (int i = 0; i < kScoresPerThread; ++i) {
    const int token = token_at(begin, i);
    if (a.allowed && token < a.vocab_size) {
      const uint32_t word = a.allowed[int64_t(number) * ceil_div(a.vocab_size, 32) + token / 32];
      if (!(word >> token % 32 & 1)) scores[i] = -INFINITY;
    }
    slice[token - begin] = scores[i];
  }
  __syncthreads();
  for (int entry = row.bias_begin + thread; entry < row.bias_end; entry += kSamplingThreads) {
    const TokenValue bias = a.biases[entry];
    const unsigned at = unsigned(bias.token - begin);
    if (at < unsigned(length)) slice[at] += bias.value;
  }
  __syncthreads();
  for (int entry = row.seen_begin + thread; entry < row.seen_end; entry += kSamplingThreads) {
    const TokenValue seen = a.seen[entry];
    const unsigned at = unsigned(seen.token - begin);
    if (at >= unsigned(length)) continue;
    if (seen.token == drawn)
      before[0] = seen.value;
    else
      slice[at] = penalised(slice[at], row, seen.value);
  }
  __syncthreads();
  if (const unsigned at = unsigned(drawn - begin); thread == 0 && drawn >= 0 && at < unsigned(length))
    slice[at] = penalised(slice[at], row, before[0] + 1.0f);
  __syncthreads();
  float* out = a.out + int64_t(number) * a.vocab_size + begin;
  for (int at = thread; at < length; at += kSamplingThreads) out[at] = slice[at];
}

}  // namespace tessera
