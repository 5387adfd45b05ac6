// Linear layers in fp32 over weights packed once, for any number of rows: streaming them for one row or eight is as
// fast as memory allows, and some hundred rows run near the processor's peak.
//
// Packed weight: see panels.h.
//
// Reference: tessera_kernels/linear.py TorchWeight
// Next: kernels/csrc/cpu/moe.cpp

#include <omp.h>

#include <vector>

#include "panels.h"

namespace {

using namespace tessera;

enum Activation { kNone = 0, kGeluTanh = 1, kSwiGlu = 2 };

constexpr long kRowsAtOnce = 768;  // rows of x whose packed copy is worked on at a time

// One panel of plain output: bias, activation, and out to the rows.
void finish_panel(float* sums, long rows, const float* bias, Activation activation, float* out, long out_stride,
                  long columns) {
  float padded_bias[kPanel] = {};
  if (bias) write_lanes(padded_bias, bias, columns);
  for (long row = 0; row < rows; ++row) {
    float* from = sums + row * kPanel;
    for (int lane = 0; lane < kPanel; lane += kLanes) {
      vfloat value = load(from + lane) + load(padded_bias + lane);
      if (activation == kGeluTanh) value = gelu_tanh(value);
      store(from + lane, value);
    }
    write_lanes(out + row * out_stride, from, columns);
  }
}

}  // namespace

// Copies rows [0, count) of a matrix into their panels, from row `start` of the layer on.
//
// rows: (count, in_features). packed: panels. With `gated`, row r of the first half of out_features is a gate and goes
// to panel 2 (r / 16), one of the second half an up and goes to the panel after that.
TESSERA_EXPORT void tessera_pack_rows(const float* rows, long count, long start, long in_features, long out_features,
                                      int gated, float* packed, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long k0 = 0; k0 < in_features; k0 += 64) {
    const long k1 = std::min(k0 + 64, in_features);
    for (long i = 0; i < count; ++i) {
      long row = start + i, panel = row / kPanel;
      if (gated) {
        const long inner = out_features / 2, up = row >= inner;
        row -= up * inner;
        panel = 2 * (row / kPanel) + up;
      }
      float* to = packed + panel * in_features * kPanel + row % kPanel;
      for (long k = k0; k < k1; ++k) to[k * kPanel] = rows[i * in_features + k];
    }
  }
}

// Reads rows by index out of a packed, ungated weight. ids: (count,), out: (count, in_features).
TESSERA_EXPORT void tessera_read_rows(const float* packed, const int64_t* ids, long count, long in_features,
                                      float* out) {
  for (long i = 0; i < count; ++i) {
    const float* from = packed + ids[i] / kPanel * in_features * kPanel + ids[i] % kPanel;
    for (long k = 0; k < in_features; ++k) out[i * in_features + k] = from[k * kPanel];
  }
}

// out = activation(x * weight^T + bias).
//
// x: (rows, in_features). packed: see above. bias: (out_features,) or null, never with a gated activation.
// out: (rows, out_features), or half as many columns with the gated one. fixed_order: see multiply_panels.
TESSERA_EXPORT void tessera_linear(const float* x, const float* packed, const float* bias, float* out, long rows,
                                   long in_features, long out_features, int activation, int fixed_order,
                                   int threads) {
  const bool gated = activation == kSwiGlu;
  const long columns = gated ? out_features / 2 : out_features;
  const long panels = (columns + kPanel - 1) / kPanel * (gated ? 2 : 1);
  const long units = (panels + 1) / 2;
  const long chunk = std::max(1L, units / (threads * 8L));
  thread_local std::vector<float> packed_rows;  // grows to the largest call, then stays
  for (long first = 0; first < rows; first += kRowsAtOnce) {
    const long count = std::min(kRowsAtOnce, rows - first);
    if (packed_rows.size() < size_t(count * in_features)) packed_rows.resize(count * in_features);
    const PackedRows block(count, in_features, packed_rows.data());
    const auto row = [=](long i) { return x + (first + i) * in_features; };
    float* to = out + first * columns;
    const bool few = block.blocks == 1;  // a barrier would cost more than packing them here
    if (few) block.pack(0, row);
#pragma omp parallel num_threads(threads)
    {
      if (!few) {
#pragma omp for schedule(static)
        for (long b = 0; b < block.blocks; ++b) block.pack(b, row);
      }
      thread_local std::vector<float> sums;
      if (sums.size() < size_t(2 * count * kPanel)) sums.resize(2 * count * kPanel);
#pragma omp for schedule(dynamic, chunk) nowait
      for (long unit = 0; unit < units; ++unit) {
        const int here = int(std::min(2L, panels - 2 * unit));
        const auto multiply = fixed_order ? multiply_panels<true> : multiply_panels<false>;
        multiply(block, packed + 2 * unit * in_features * kPanel, here, sums.data());
        if (gated) {
          const long column = unit * kPanel;
          finish_gated(sums.data(), count, to + column, columns, columns - column);
          continue;
        }
        for (int panel = 0; panel < here; ++panel) {
          const long column = (2 * unit + panel) * kPanel;
          finish_panel(sums.data() + panel * count * kPanel, count, bias ? bias + column : nullptr,
                       Activation(activation), to + column, columns, columns - column);
        }
      }
    }
  }
}
