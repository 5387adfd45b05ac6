"""The ops that layers call: one typed function each, which picks the implementation by device and type.

A kernel is chosen by what the tensors are, never by whether it happened to work: where one is declared for a device it
runs or raises. `implementations` says which one runs, for the start log and `Describe`.

Adding an op: five steps in kernels/README.md.

Next: kernels/tessera_kernels/reference.py
"""

from tessera_kernels import linear, moe
from tessera_kernels.attention import paged_attention, segment_attention, varlen_attention, vision_attention
from tessera_kernels.bicubic import interpolate_positions_bicubic
from tessera_kernels.heads import qk_norm_rope, qk_norm_rope_store, rope_qk, rotary_table, store_kv
from tessera_kernels.implementations import Choice, implementations
from tessera_kernels.linear import LinearWeight
from tessera_kernels.linear_attention import causal_conv, gated_delta_rule, gated_rms_norm
from tessera_kernels.moe import ExpertWeights
from tessera_kernels.multimodal import merge_embeddings, mrope_positions
from tessera_kernels.norms import add_layer_norm, add_rms_norm, gelu, layer_norm, rms_norm
from tessera_kernels.reference import interpolate_positions, merge_order
from tessera_kernels.reference_gated_delta import Sequences
from tessera_kernels.routing import choose_experts
from tessera_kernels.segments import Segments
from tessera_kernels.series import (
    SeriesBatch,
    batches_series,
    normalise_series,
    num_patches,
    series_patches,
    series_windows,
)
from tessera_kernels.slots import copy_slots
from tessera_kernels.transfer import on_device
from tessera_kernels.vision import (
    add_positions,
    batches_pixels,
    batches_positions,
    centred_patches,
    patches_of_items,
    position_taps,
    vision_rotary,
)

__all__ = [
    "Choice",
    "ExpertWeights",
    "LinearWeight",
    "Segments",
    "Sequences",
    "SeriesBatch",
    "add_layer_norm",
    "add_positions",
    "add_rms_norm",
    "batches_pixels",
    "batches_positions",
    "batches_series",
    "causal_conv",
    "centred_patches",
    "choose_experts",
    "copy_slots",
    "gated_delta_rule",
    "gated_rms_norm",
    "gelu",
    "implementations",
    "interpolate_positions",
    "interpolate_positions_bicubic",
    "layer_norm",
    "linear",
    "merge_embeddings",
    "merge_order",
    "moe",
    "mrope_positions",
    "normalise_series",
    "num_patches",
    "on_device",
    "paged_attention",
    "patches_of_items",
    "position_taps",
    "qk_norm_rope",
    "qk_norm_rope_store",
    "rms_norm",
    "rope_qk",
    "rotary_table",
    "segment_attention",
    "series_patches",
    "series_windows",
    "store_kv",
    "varlen_attention",
    "vision_attention",
    "vision_rotary",
]
