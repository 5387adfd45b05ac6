// Every CUDA op's schema, on one page: what is changed is marked (a!), shapes and meaning are in tessera_kernels/ops.py.
//
// Next: kernels/csrc/launch.h
#include "launch.h"

#define TESSERA_SCHEMAS(m) TESSERA_SCHEMAS_EXPANDED(TESSERA_NAMESPACE, m)
#define TESSERA_SCHEMAS_EXPANDED(space, m) STABLE_TORCH_LIBRARY(space, m)

TESSERA_SCHEMAS(m) {
  // norms
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor");
  m.def("add_rms_norm(Tensor x, Tensor? x_bias, Tensor(a!) residual, Tensor weight, float eps) -> Tensor");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor");
  m.def("add_layer_norm(Tensor x, Tensor? x_bias, Tensor(a!) residual, Tensor weight, Tensor bias, float eps) -> Tensor");

  // vision: items of all sizes side by side, patches in merge order
  m.def(
      "centred_patches(Tensor pixels, Tensor items, int rows, int patch, int merge, int temporal, float centre, "
      "ScalarType dtype) -> Tensor");
  m.def("position_taps(Tensor grids, int rows, int merge, int side, bool cubic) -> (Tensor, Tensor)");
  m.def("add_positions(Tensor(a!) x, Tensor? bias, Tensor table, Tensor index, Tensor weight) -> ()");
  m.def("vision_rotary(Tensor grids, int rows, int merge, Tensor inv_freq) -> (Tensor, Tensor)");
  m.def("qkv_prepare(Tensor qkv, Tensor? bias, Tensor cos, Tensor sin, int num_heads, int padded_dim) -> Tensor");
  m.def(
      "segment_attention(Tensor query, Tensor key, Tensor value, Tensor starts, float scale, bool causal) -> Tensor");

  // time series: normalised, and patches of several of them to rows
  m.def("normalise_series(Tensor samples, int used, float spread, ScalarType dtype) -> Tensor");
  m.def(
      "series_patches(Tensor samples, Tensor series, int first, int patches, int stride, Tensor kernel, Tensor bias, "
      "Tensor positions) -> Tensor");

  // activations
  m.def("bias_gelu(Tensor(a!) x, Tensor? bias, bool tanh) -> ()");
  m.def("swiglu(Tensor gate_up) -> Tensor");

  // rotation of the language model's heads, and their cache
  m.def("rotary_table(Tensor positions, Tensor inv_freq, Tensor axes) -> (Tensor, Tensor)");
  m.def(
      "qk_norm_rope(Tensor(a!) qkv, Tensor? q_weight, Tensor? k_weight, float eps, Tensor cos, Tensor sin, "
      "int num_heads, int num_kv_heads, int head_dim) -> ()");
  m.def(
      "qk_norm_rope_store(Tensor(a!) qkv, Tensor? q_weight, Tensor? k_weight, float eps, Tensor cos, Tensor sin, "
      "int num_heads, int num_kv_heads, int head_dim, Tensor(b!) key_cache, Tensor(c!) value_cache, Tensor slots) "
      "-> ()");
  m.def(
      "store_kv(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slots) -> ()");

  // attention over the paged cache
  m.def(
      "paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor block_tables, Tensor query_start, "
      "Tensor context_lens, int max_query_len, int max_context_len, float scale, int split_size, bool invariant) "
      "-> Tensor");

  // linear attention: sequences with a carried state
  m.def(
      "causal_conv(Tensor x, Tensor weight, Tensor(a!) states, Tensor slots, Tensor query_start, Tensor context_lens) "
      "-> Tensor");
  m.def(
      "gated_delta_rule(Tensor qkv, Tensor gates, Tensor rate, Tensor bias, Tensor(a!) states, Tensor slots, "
      "Tensor query_start, Tensor context_lens, int key_heads, bool chunked=False) -> Tensor");
  m.def("gated_rms_norm(Tensor x, Tensor gate, Tensor weight, float eps) -> Tensor");

  // items in a step of the language model
  m.def("mrope_positions(Tensor segments, int tokens) -> Tensor");
  m.def("merge_embeddings(Tensor(a!) hidden, Tensor features, Tensor source, Tensor target, bool add) -> ()");

  // slots of a cache
  m.def("copy_slots(Tensor(a!) cache, Tensor pairs) -> ()");

  // mixture of experts: an entry is token * k + choice; order holds them expert by expert, starts where each begins
  m.def(
      "choose_experts(Tensor logits, Tensor? bias, int k, bool sigmoid, int num_groups, int top_groups, "
      "bool within_groups, bool normalise, float scale) -> (Tensor, Tensor)");
  m.def("sort_by_expert(Tensor experts, int num_experts) -> (Tensor, Tensor)");
  m.def("grouped_linear(Tensor x, Tensor weight, Tensor order, Tensor starts, bool swiglu) -> Tensor");
  m.def("combine_experts(Tensor answers, Tensor weights, Tensor? shared, Tensor? shared_gate) -> Tensor");

  // sampling: rows and lists are records of 32-bit words
  m.def(
      "penalised_logits(Tensor logits, Tensor rows, Tensor biases, Tensor seen, Tensor? drawn, Tensor? allowed) -> "
      "Tensor");
  m.def(
      "sample(Tensor logits, Tensor? changed, Tensor rows, bool random, bool filtered, int num_top) -> Tensor");
  m.def("gumbel(Tensor keys, Tensor tokens) -> (Tensor, Tensor)");
}
