// Embeddings of items into the stream of a step, by ranges: features[source] replaces, or is added to, hidden[target].
//
// A block owns a row of the stream and asks which range holds it; a row of no range is left alone. So the number of
// ranges and all they say may change from launch to launch of a graph. Ranges may be empty.
//
// Bytes: a row of the features in and a row of the stream out (with add: in and out), each once.
//
// Next: kernels/csrc/embedding_merge.cu
#pragma once

#include "vector.cuh"

namespace tessera {

template <typename T>
struct MergeArguments {
  T* hidden;  // (rows, width)
  int64_t hidden_stride;
  const T* features;  // (feature_rows, width)
  int64_t features_stride;
  const int64_t* source;  // (count, 2), half-open, rows of the features
  const int64_t* target;  // (count, 2), half-open, rows of the stream; ascending, apart from each other
  int count, width;
};

// The index of the last range that begins at or before a row, or -1. Both whole warps and single lanes may call.
__device__ __forceinline__ int find_range(const int64_t* ranges, int count, int64_t row) {
  int low = -1, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (ranges[2 * middle] <= row ? low : high) = middle;
  }
  return low;
}

template <typename T, int N, bool Add>
__global__ void __launch_bounds__(256) merge_kernel(const MergeArguments<T> a) {
  const int64_t row = blockIdx.x;
  const int range = find_range(a.target, a.count, row);
  if (range < 0 || row >= a.target[2 * range + 1]) return;
  const T* from = a.features + (a.source[2 * range] + row - a.target[2 * range]) * a.features_stride;
  T* to = a.hidden + row * a.hidden_stride;
#pragma unroll 4
  for (int column = int(threadIdx.x) * N; column < a.width; column += int(blockDim.x) * N) {
    if constexpr (Add) {
      float feature[N], sum[N];
      load_float<N>(feature, from + column);
      load_float<N>(sum, to + column);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += feature[i];
      store_float<N>(to + column, sum);
    } else {
      *reinterpret_cast<Vector<T, N>*>(to + column) = load<N>(from + column);
    }
  }
}

}  // namespace tessera
