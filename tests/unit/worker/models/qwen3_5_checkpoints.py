"""A Qwen3.5 checkpoint, dense or MoE, small enough to be written for each test, without transformers.

Next: tests/unit/worker/models/test_qwen3_5.py
"""

from typing import Any

import torch

from tests.unit.worker.models import checkpoints

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 16, 24, 2, 1, 16, 40
KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, KERNEL = 1, 2, 8, 4, 3
EXPERTS, CHOSEN, EXPERT_INNER, SHARED_INNER = 4, 2, 8, 12
CHANNELS = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM
LAYER_TYPES = ["linear_attention", "full_attention", "linear_attention"]

TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "eos_token_id": 3,
    "layer_types": LAYER_TYPES,
    "linear_num_key_heads": KEY_HEADS,
    "linear_num_value_heads": VALUE_HEADS,
    "linear_key_head_dim": KEY_DIM,
    "linear_value_head_dim": VALUE_DIM,
    "linear_conv_kernel_dim": KERNEL,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
    },
}
MOE = {
    "num_experts": EXPERTS,
    "num_experts_per_tok": CHOSEN,
    "moe_intermediate_size": EXPERT_INNER,
    "shared_expert_intermediate_size": SHARED_INNER,
}


def config(moe: bool = False, text_only: bool = False) -> dict[str, Any]:
    """Return config.json: nested beside a vision tower, or flat."""
    text = {key: value for key, value in TEXT.items() if not (moe and key == "intermediate_size")}
    text |= MOE if moe else {}
    name = "Qwen3_5Moe" if moe else "Qwen3_5"
    if text_only:
        return text | {"architectures": [f"{name}ForCausalLM"]}
    vision = {key: value for key, value in checkpoints.config()["vision_config"].items() if "deepstack" not in key}
    architecture = f"{name}ForConditionalGeneration"
    return {"architectures": [architecture], "text_config": text, "vision_config": vision}


def shapes(moe: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the checkpoint by canonical name."""
    found = {
        name: shape
        for name, shape in checkpoints.shapes(tie=False).items()
        if ".layers." not in name and ".deepstack" not in name
    }
    for index, kind in enumerate(LAYER_TYPES):
        mixer = _linear() if kind == "linear_attention" else _full()
        norms = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
        layer = norms | mixer | (_experts() if moe else _mlp("mlp", INNER))
        found |= {f"model.language_model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return found


def _linear() -> dict[str, tuple[int, ...]]:
    width = VALUE_HEADS * VALUE_DIM
    return {
        "linear_attn.in_proj_qkv.weight": (CHANNELS, HIDDEN),
        "linear_attn.in_proj_z.weight": (width, HIDDEN),
        "linear_attn.in_proj_b.weight": (VALUE_HEADS, HIDDEN),
        "linear_attn.in_proj_a.weight": (VALUE_HEADS, HIDDEN),
        "linear_attn.conv1d.weight": (CHANNELS, 1, KERNEL),
        "linear_attn.A_log": (VALUE_HEADS,),
        "linear_attn.dt_bias": (VALUE_HEADS,),
        "linear_attn.norm.weight": (VALUE_DIM,),
        "linear_attn.out_proj.weight": (HIDDEN, width),
    }


def _full() -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.q_proj.weight": (2 * HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
        "self_attn.q_norm.weight": (HEAD_DIM,),
        "self_attn.k_norm.weight": (HEAD_DIM,),
    }


def _mlp(prefix: str, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, HIDDEN),
        f"{prefix}.up_proj.weight": (inner, HIDDEN),
        f"{prefix}.down_proj.weight": (HIDDEN, inner),
    }


def _experts() -> dict[str, tuple[int, ...]]:
    return {
        "mlp.gate.weight": (EXPERTS, HIDDEN),
        "mlp.experts.gate_up_proj": (EXPERTS, 2 * EXPERT_INNER, HIDDEN),
        "mlp.experts.down_proj": (EXPERTS, HIDDEN, EXPERT_INNER),
        "mlp.shared_expert_gate.weight": (1, HIDDEN),
        **_mlp("mlp.shared_expert", SHARED_INNER),
    }


def tensors(moe: bool = False) -> dict[str, torch.Tensor]:
    """Return random tensors of those shapes, the same every time, and a predictor's that nobody reads."""
    generator = torch.Generator().manual_seed(0)
    found = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes(moe).items()}
    return found | {"mtp.fc.weight": torch.ones(2, 2), "mtp.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}


def text_tensors(moe: bool = False) -> dict[str, torch.Tensor]:
    """Return those of the language model alone."""
    return {name: tensor for name, tensor in tensors(moe).items() if ".visual." not in name}
