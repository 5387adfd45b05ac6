"""GLM-4.1V and GLM-4.5V checkpoints small enough to be written for each test, without transformers.

Next: tests/unit/worker/models/test_glm4v.py
"""

from typing import Any

import torch

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 32, 24, 2, 1, 16, 40
VISION, MERGER_INNER, PATCH, TABLE_SIDE = 16, 20, 4, 3
EXPERTS, EXPERT_INNER = 4, 8

Shapes = dict[str, tuple[int, ...]]


def config(moe: bool = False) -> dict[str, Any]:
    """Return config.json, in the newer style."""
    text = {
        "dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "eos_token_id": [3, 4],
        "rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5},
    }
    if moe:
        text |= {"head_dim": HEAD_DIM, "moe_intermediate_size": EXPERT_INNER, "n_routed_experts": EXPERTS}
        text |= {"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
    return {
        "architectures": [f"Glm4v{'Moe' if moe else ''}ForConditionalGeneration"],
        "image_token_id": 8,
        "video_token_id": 9,
        "image_start_token_id": 5,
        "image_end_token_id": 6,
        "text_config": text,
        "vision_config": {
            "depth": 2,
            "hidden_size": VISION,
            "intermediate_size": MERGER_INNER,
            "num_heads": 1,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "image_size": PATCH * TABLE_SIDE,
        },
    }


def shapes(moe: bool = False) -> Shapes:
    """Return the tensors of the checkpoint by canonical name."""
    text = "model.language_model"
    found: Shapes = {
        "lm_head.weight": (VOCAB, HIDDEN),
        f"{text}.embed_tokens.weight": (VOCAB, HIDDEN),
        f"{text}.norm.weight": (HIDDEN,),
    }
    for index in range(2):
        layer = f"{text}.layers.{index}"
        found |= {f"{layer}.{name}": shape for name, shape in _layer(moe, dense=index == 0).items()}
    return found | {f"model.visual.{name}": shape for name, shape in _visual().items()}


def _layer(moe: bool, dense: bool) -> Shapes:
    found: Shapes = {"self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM)}
    for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        found[f"self_attn.{name}_proj.weight"] = (heads * HEAD_DIM, HIDDEN)
        found[f"self_attn.{name}_proj.bias"] = (heads * HEAD_DIM,)
    norms = ["input", "post_attention"] + ([] if moe else ["post_self_attn", "post_mlp"])
    found |= {f"{name}_layernorm.weight": (HIDDEN,) for name in norms}
    if not moe:
        return found | {"mlp.gate_up_proj.weight": (2 * INNER, HIDDEN), "mlp.down_proj.weight": (HIDDEN, INNER)}
    if dense:
        return found | _swiglu("mlp", HIDDEN, INNER)
    found |= {"mlp.gate.weight": (EXPERTS, HIDDEN), "mlp.gate.e_score_correction_bias": (EXPERTS,)}
    for expert in range(EXPERTS):
        found |= _swiglu(f"mlp.experts.{expert}", HIDDEN, EXPERT_INNER)
    return found | _swiglu("mlp.shared_experts", HIDDEN, EXPERT_INNER)


def _visual() -> Shapes:
    found: Shapes = {
        "patch_embed.proj.weight": (VISION, 3, 2, PATCH, PATCH),
        "patch_embed.proj.bias": (VISION,),
        "embeddings.position_embedding.weight": (TABLE_SIDE**2, VISION),
        "post_conv_layernorm.weight": (VISION,),
        "post_layernorm.weight": (VISION,),
        "downsample.weight": (HIDDEN, VISION, 2, 2),
        "downsample.bias": (HIDDEN,),
        "merger.proj.weight": (HIDDEN, HIDDEN),
        "merger.post_projection_norm.weight": (HIDDEN,),
        "merger.post_projection_norm.bias": (HIDDEN,),
        **_swiglu("merger", HIDDEN, MERGER_INNER),
    }
    for index in range(2):
        block = f"blocks.{index}"
        found |= {f"{block}.{name}.weight": (VISION,) for name in ("norm1", "norm2")}
        found |= {f"{block}.attn.qkv.weight": (3 * VISION, VISION), f"{block}.attn.proj.weight": (VISION, VISION)}
        found |= _swiglu(f"{block}.mlp", VISION, HIDDEN)
    return found


def _swiglu(prefix: str, width: int, inner: int) -> Shapes:
    return {
        f"{prefix}.gate_proj.weight": (inner, width),
        f"{prefix}.up_proj.weight": (inner, width),
        f"{prefix}.down_proj.weight": (width, inner),
    }


def tensors(moe: bool = False) -> dict[str, torch.Tensor]:
    """Return random tensors of those shapes, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes(moe).items()}
