// A mixture of experts in fp32: rows sorted by expert, one grouped product for gate and up, one for down, and each
// token's answers added up in the order of its choices.
//
// A task is one pair of panels of one expert, whichever expert it is: a single token with eight experts keeps all
// threads busy, and so does a prompt whose tokens all want the same one.
//
// Reference: tessera_kernels/moe.py grouped_experts
// Next: kernels/csrc/cpu/attention.cpp

#include <omp.h>

#include <vector>

#include "panels.h"

namespace {

using namespace tessera;

constexpr long kTokensAtOnce = 512;  // bounds the workspace; by then experts have rows enough to reuse their weights
constexpr long kRowsAtOnce = 256;    // rows of one expert that share a task's sums

// A row's sums are independent of how many rows its expert has where that costs 3 % at one row; with AVX2 it is 25 %,
// which is paid only when it is asked for.
constexpr bool kAlwaysFixed = kLanes == kPanel;

// Some rows of one expert: sorted rows [first, first + count).
struct Group {
  long expert, first, count;
};

// The choices of some tokens, sorted by expert; kept from call to call for its memory.
struct Plan {
  std::vector<Group> groups;
  std::vector<long> token_of;   // sorted row -> token
  std::vector<long> row_of;     // choice -> sorted row
  std::vector<long> next;       // expert -> its next sorted row

  void make(const int64_t* experts, long tokens, long choices, long num_experts) {
    const long rows = tokens * choices;
    token_of.resize(rows);
    row_of.resize(rows);
    next.assign(num_experts, 0);
    groups.clear();
    for (long choice = 0; choice < rows; ++choice) ++next[experts[choice]];
    long first = 0;
    for (long expert = 0; expert < num_experts; ++expert) {
      const long end = first + next[expert];
      next[expert] = first;
      for (; first < end; first += kRowsAtOnce) groups.push_back({expert, first, std::min(kRowsAtOnce, end - first)});
      first = end;
    }
    for (long choice = 0; choice < rows; ++choice) {
      const long row = next[experts[choice]]++;
      row_of[choice] = row;
      token_of[row] = choice / choices;
    }
  }
};

// The packed weights of one projection, all experts one after the other.
struct Projection {
  const float* packed;
  long depth, panels, columns;  // columns: of the output
  bool gated, fixed_order;

  Projection(const float* packed, long depth, long columns, bool gated, bool fixed_order)
      : packed(packed), depth(depth), panels((columns + kPanel - 1) / kPanel * (gated ? 2 : 1)), columns(columns),
        gated(gated), fixed_order(fixed_order) {}

  long units() const { return (panels + 1) / 2; }

  // Columns of pair `unit`, for one group. rows: all sorted rows, packed group by group. out: all sorted rows.
  void multiply(const Group& group, long unit, float* rows, float* sums, float* out) const {
    const PackedRows x(group.count, depth, rows + group.first * depth);
    const int here = int(std::min(2L, panels - 2 * unit));
    const auto multiply = kAlwaysFixed || fixed_order ? multiply_panels<true> : multiply_panels<false>;
    multiply(x, packed + (group.expert * panels + 2 * unit) * depth * kPanel, here, sums);
    float* to = out + group.first * columns;
    if (gated) return finish_gated(sums, group.count, to + unit * kPanel, columns, columns - unit * kPanel);
    for (int panel = 0; panel < here; ++panel) {
      const long column = (2 * unit + panel) * kPanel;
      for (long row = 0; row < group.count; ++row)
        write_lanes(to + row * columns + column, sums + (panel * group.count + row) * kPanel, columns - column);
    }
  }
};

// The product of all groups, by all threads of the region that this is called in. row(i): where sorted row i lies.
template <typename Row>
void multiply_groups(const std::vector<Group>& groups, const Projection& weight, Row row, float* packed, float* out,
                     int threads) {
  const long count = groups.size(), units = weight.units();
#pragma omp for schedule(dynamic)
  for (long g = 0; g < count; ++g) {
    const long first = groups[g].first;
    const PackedRows to(groups[g].count, weight.depth, packed + first * weight.depth);
    for (long block = 0; block < to.blocks; ++block) to.pack(block, [=](long i) { return row(first + i); });
  }
  thread_local std::vector<float> sums(2 * kRowsAtOnce * kPanel);
  const long chunk = std::max(1L, count * units / (threads * 8L));
#pragma omp for schedule(dynamic, chunk)
  for (long task = 0; task < count * units; ++task)
    weight.multiply(groups[task / units], task % units, packed, sums.data(), out);
}

// out = sum over choices of weight * answer, in their order.
void combine(const float* answers, const long* row_of, const float* weights, long choices, long hidden, float* out) {
  for (long j = 0; j < choices; ++j) {
    const float* from = answers + row_of[j] * hidden;
    const float weight = weights[j];
    if (j == 0)
      for (long h = 0; h < hidden; ++h) out[h] = weight * from[h];
    else
      for (long h = 0; h < hidden; ++h) out[h] += weight * from[h];
  }
}

void grow(std::vector<float>& to, size_t size) {
  if (to.size() < size) to.resize(size);
}

}  // namespace

// out = sum over j of weights[:, j] * down(silu(gate(x)) * up(x)), by expert experts[:, j].
//
// x, out: (tokens, hidden). experts, weights: (tokens, choices), experts in [0, num_experts). gate_up: for each expert
// the packed (2 * inner, hidden) weight with panels of gate and up alternating. down: likewise (hidden, inner).
// fixed_order: see multiply_panels.
TESSERA_EXPORT void tessera_experts(const float* x, const int64_t* experts, const float* weights, const float* gate_up,
                                    const float* down, float* out, long tokens, long choices, long num_experts,
                                    long hidden, long inner, int fixed_order, int threads) {
  const Projection in(gate_up, hidden, inner, true, fixed_order), back(down, inner, hidden, false, fixed_order);
  thread_local Plan plan;
  thread_local std::vector<float> packed, middle, answers;  // grow to the largest call, then stay
  for (long first = 0; first < tokens; first += kTokensAtOnce) {
    const long count = std::min(kTokensAtOnce, tokens - first), rows = count * choices;
    plan.make(experts + first * choices, count, choices, num_experts);
    grow(packed, rows * std::max(hidden, inner));
    grow(middle, rows * inner);
    grow(answers, rows * hidden);
    // a thread of the region has its own `plan` and buffers: it is given this one's
    const Plan& shared = plan;
    float *rows_in = packed.data(), *between = middle.data(), *said = answers.data();
#pragma omp parallel num_threads(threads)
    {
      const long* token_of = shared.token_of.data();
      multiply_groups(shared.groups, in, [=](long row) { return x + (first + token_of[row]) * hidden; }, rows_in,
                      between, threads);
      multiply_groups(shared.groups, back, [=](long row) { return between + row * inner; }, rows_in, said, threads);
#pragma omp for schedule(static)
      for (long token = 0; token < count; ++token)
        combine(said, shared.row_of.data() + token * choices, weights + (first + token) * choices, choices, hidden,
                out + (first + token) * hidden);
    }
  }
}
