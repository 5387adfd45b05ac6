"""A Qwen3-VL checkpoint small enough to be written for each test, without transformers.

Next: tests/unit/worker/models/test_loader.py
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 16, 24, 2, 1, 16, 40
VISION, VISION_INNER, PATCH, DEPTH = 16, 24, 4, 2


def config(tie: bool = True) -> dict[str, Any]:
    """Return config.json, in the newer style."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tie,
        "image_token_id": 8,
        "video_token_id": 9,
        "vision_start_token_id": 5,
        "vision_end_token_id": 6,
        "text_config": {
            "dtype": "float32",
            "hidden_size": HIDDEN,
            "intermediate_size": INNER,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCAB,
            "max_position_embeddings": 512,
            "eos_token_id": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
        },
        "vision_config": {
            "depth": DEPTH,
            "hidden_size": VISION,
            "intermediate_size": VISION_INNER,
            "num_heads": 1,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "num_position_embeddings": 9,
            "deepstack_visual_indexes": [0],
        },
    }


def shapes(tie: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the checkpoint by canonical name."""
    text, visual = "model.language_model", "model.visual"
    found: dict[str, tuple[int, ...]] = {
        f"{text}.embed_tokens.weight": (VOCAB, HIDDEN),
        f"{text}.norm.weight": (HIDDEN,),
        f"{visual}.patch_embed.proj.weight": (VISION, 3, 2, PATCH, PATCH),
        f"{visual}.patch_embed.proj.bias": (VISION,),
        f"{visual}.pos_embed.weight": (9, VISION),
    }
    if not tie:
        found["lm_head.weight"] = (VOCAB, HIDDEN)
    for index in range(2):
        layer = f"{text}.layers.{index}"
        for name, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):
            found[f"{layer}.{name}.weight"] = (rows, columns)
        for name, width in (
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", HEAD_DIM),
            ("self_attn.k_norm", HEAD_DIM),
        ):
            found[f"{layer}.{name}.weight"] = (width,)
    for index in range(DEPTH):
        block = f"{visual}.blocks.{index}"
        for name, rows, columns in (
            ("attn.qkv", 3 * VISION, VISION),
            ("attn.proj", VISION, VISION),
            ("mlp.linear_fc1", VISION_INNER, VISION),
            ("mlp.linear_fc2", VISION, VISION_INNER),
        ):
            found[f"{block}.{name}.weight"], found[f"{block}.{name}.bias"] = (rows, columns), (rows,)
        for name in ("norm1", "norm2"):
            found[f"{block}.{name}.weight"] = found[f"{block}.{name}.bias"] = (VISION,)
    for merger, norm in ((f"{visual}.merger", VISION), (f"{visual}.deepstack_merger_list.0", 4 * VISION)):
        found[f"{merger}.norm.weight"] = found[f"{merger}.norm.bias"] = (norm,)
        found[f"{merger}.linear_fc1.weight"], found[f"{merger}.linear_fc1.bias"] = (
            (4 * VISION, 4 * VISION),
            (4 * VISION,),
        )
        found[f"{merger}.linear_fc2.weight"], found[f"{merger}.linear_fc2.bias"] = (HIDDEN, 4 * VISION), (HIDDEN,)
    return found


def tensors(tie: bool = True) -> dict[str, torch.Tensor]:
    """Return random tensors of those shapes, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes(tie).items()}


def write(
    path: Path, weights: dict[str, torch.Tensor] | None = None, settings: dict[str, Any] | None = None, shards: int = 1
) -> Path:
    """Write a checkpoint directory; defaults are `tensors` and `config`."""
    weights = tensors() if weights is None else weights
    (path / "config.json").write_text(json.dumps(config() if settings is None else settings))
    if shards == 1:
        save_file(weights, path / "model.safetensors")
        return path
    names = sorted(weights)
    weight_map = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({name: weights[name] for name in names if weight_map[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path
