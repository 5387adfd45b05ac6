"""Names, shapes and random values of the tensors of a tiny InternS1-Pro checkpoint.

Next: tests/tiny_interns1_pro.py
"""

import math
from typing import Any

import torch

from tests.unit.worker.models.quantise import blocks

Json = dict[str, Any]

FP8_BLOCK = (32, 16)


def shapes(config: Json) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a checkpoint, by its name as released."""
    found = _text_shapes(config["text_config"])
    if "vision_config" in config:
        found |= _vision_shapes(config["vision_config"])
    if "ts_config" in config:
        found |= _series_shapes(config["ts_config"])
    return found


def _linear(name: str, rows: int, columns: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def kept_frequencies(text: Json) -> int:
    """Return how many frequencies FoPE keeps."""
    if text["rope_scaling"]["num_inv_freq"] is not None:
        return int(text["rope_scaling"]["num_inv_freq"])
    slowest = 2 * math.pi / text["max_position_embeddings"]
    dim = text["head_dim"]
    return sum(text["rope_theta"] ** (-i / dim) > slowest for i in range(0, dim, 2))


def _text_shapes(text: Json) -> dict[str, tuple[int, ...]]:
    hidden, dim, kv_heads = text["hidden_size"], text["head_dim"], text["num_key_value_heads"]
    model, kept = "model.language_model", kept_frequencies(text)
    found: dict[str, tuple[int, ...]] = {
        f"{model}.embed_tokens.weight": (text["vocab_size"], hidden),
        f"{model}.norm.weight": (hidden,),
        "lm_head.weight": (text["vocab_size"], hidden),
    }
    for name in ("cos_coef", "sin_coef"):
        found[f"{model}.rotary_emb.{name}"] = (kv_heads,) * bool(text["rope_scaling"]["fope_sep_head"]) + (kept, kept)
    for index in range(text["num_hidden_layers"]):
        layer, experts = f"{model}.layers.{index}", text["num_experts"]
        for name, rows, columns in (
            ("q_proj", text["num_attention_heads"] * dim, hidden),
            ("k_proj", kv_heads * dim, hidden),
            ("v_proj", kv_heads * dim, hidden),
            ("o_proj", hidden, text["num_attention_heads"] * dim),
        ):
            found |= _linear(f"{layer}.self_attn.{name}", rows, columns, text["attention_bias"])
        for name, width in (("input", hidden), ("post_attention", hidden)):
            found[f"{layer}.{name}_layernorm.weight"] = (width,)
        found[f"{layer}.self_attn.q_norm.weight"] = found[f"{layer}.self_attn.k_norm.weight"] = (dim,)
        sparse = index not in text["mlp_only_layers"]
        prefixes = [f"{layer}.mlp.experts.{expert}" for expert in range(experts)] if sparse else [f"{layer}.mlp"]
        inner = text["moe_intermediate_size" if sparse else "intermediate_size"]
        if sparse:
            found[f"{layer}.mlp.gate.weight"] = (experts, hidden)
        for prefix in prefixes:
            found[f"{prefix}.gate_proj.weight"] = found[f"{prefix}.up_proj.weight"] = (inner, hidden)
            found[f"{prefix}.down_proj.weight"] = (hidden, inner)
    return found


def _vision_shapes(vision: Json) -> dict[str, tuple[int, ...]]:
    visual, width, inner = "model.visual", vision["hidden_size"], vision["intermediate_size"]
    patch, merged = vision["patch_size"], width * vision["spatial_merge_size"] ** 2
    kernel = (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    found: dict[str, tuple[int, ...]] = {
        f"{visual}.patch_embed.proj.weight": kernel,
        f"{visual}.patch_embed.proj.bias": (width,),
        f"{visual}.pos_embed.weight": (vision["num_position_embeddings"], width),
    }
    for index in range(vision["depth"]):
        block = f"{visual}.blocks.{index}"
        found |= _linear(f"{block}.attn.qkv", 3 * width, width) | _linear(f"{block}.attn.proj", width, width)
        found |= _linear(f"{block}.mlp.linear_fc1", inner, width) | _linear(f"{block}.mlp.linear_fc2", width, inner)
        found |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
    found |= _norm(f"{visual}.merger.norm", width) | _linear(f"{visual}.merger.linear_fc1", merged, merged)
    return found | _linear(f"{visual}.merger.linear_fc2", vision["out_hidden_size"], merged)


def _series_shapes(series: Json) -> dict[str, tuple[int, ...]]:
    top, width, patch = "model.time_series", series["d_model"], series["ts_adapt_in_dim"] // 2
    embed, encoder, projector = f"{top}.encoder_embed", f"{top}.encoder", f"{top}.projector"
    layer = f"{embed}.transformer_encoder.layers.0"
    adapted, out, bins = series["ts_adapt_out_dim"], series["out_hidden_size"], series["num_mel_bins"]
    found: dict[str, tuple[int, ...]] = {
        f"{embed}.conv.weight": (patch, 1, 5),
        f"{embed}.conv.bias": (patch,),
        f"{embed}.pos_encoder.pe": (20_000, 1, patch),
        f"{layer}.self_attn.in_proj_weight": (3 * patch, patch),
        f"{layer}.self_attn.in_proj_bias": (3 * patch,),
        f"{encoder}.conv1.weight": (width, bins, 3),
        f"{encoder}.conv1.bias": (width,),
        f"{encoder}.conv2.weight": (width, width, 3),
        f"{encoder}.conv2.bias": (width,),
        f"{encoder}.embed_positions.weight": (series["max_source_positions"], width),
    }
    found |= _linear(f"{layer}.self_attn.out_proj", patch, patch)
    found |= _linear(f"{layer}.linear1", 2048, patch) | _linear(f"{layer}.linear2", patch, 2048)
    found |= _norm(f"{layer}.norm1", patch) | _norm(f"{layer}.norm2", patch)
    found |= _linear(f"{encoder}.adapt_in", bins, 2 * patch) | _linear(f"{encoder}.adapt_out", adapted, width)
    for index in range(series["encoder_layers"]):
        block = f"{encoder}.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{block}.self_attn.{name}", width, width, bias=name != "k_proj")
        found |= _linear(f"{block}.fc1", series["encoder_ffn_dim"], width)
        found |= _linear(f"{block}.fc2", width, series["encoder_ffn_dim"])
        found |= _norm(f"{block}.self_attn_layer_norm", width) | _norm(f"{block}.final_layer_norm", width)
    found |= _norm(f"{encoder}.layer_norm", width) | _norm(f"{projector}.layer_norm", adapted)
    return found | _linear(f"{projector}.linear_1", out, adapted) | _linear(f"{projector}.linear_2", out, out)


def random_weights(wanted: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Return large random tensors, the same for the same seed, so that greedy continuations vary.

    FoPE's mixing is near the identity, as training begins with; the sinusoid is what it always is.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(wanted.items()):
        if name.endswith("pos_encoder.pe"):
            weights[name] = _sinusoid(shape[0], shape[2])[:, None]
            continue
        noise = torch.randn(shape, generator=generator)
        if name.endswith("_coef"):
            value = torch.eye(shape[-1]) + noise * 0.1
        elif name == "model.language_model.norm.weight":
            value = (noise - noise.mean()) * 6.0
        elif len(shape) == 1:
            value = noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif "embed_tokens" in name or "pos_embed" in name or "embed_positions" in name:
            value = noise * 0.15
        else:
            value = noise * 1.2 / math.prod(shape[1:]) ** 0.5
        weights[name] = value
    return weights


def _sinusoid(length: int, width: int) -> torch.Tensor:
    angles = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def quantised(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights with the language model's projections as e4m3, each block under a power of two."""
    stored = dict(weights)
    for name, weight in weights.items():
        if ".layers." not in name or not name.startswith("model.language_model") or "_proj.weight" not in name:
            continue
        stored[name], stored[f"{name}_scale_inv"], _ = blocks(weight, FP8_BLOCK, ue8m0=True)
    return stored
