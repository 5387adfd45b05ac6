"""Tiny random Qwen3-VL-MoE checkpoints: as `tests/tiny_models.py`, with experts as the published ones have them.

Next: tests/parity/test_model_qwen3_vl_moe.py
"""

from pathlib import Path
from typing import Any

from tests.tiny_models import make_tiny_qwen3vl

TWINS = (2, 5)
"""Experts that are alike in all weights, their router rows included, so that their scores tie to the bit."""


def make_tiny_qwen3vl_moe(
    path: str | Path,
    *,
    text: dict[str, Any] | None = None,
    twins: bool = False,
    transposed: bool = True,
    **options: Any,
) -> Path:
    """Write a tiny random Qwen3-VL-MoE checkpoint directory: layer 1 is dense, the others have 8 experts, 3 a token.

    Args:
        path: directory to make.
        text: overrides of text_config fields.
        twins: whether the experts TWINS are alike; whichever of them is chosen, the output is the same.
        transposed: whether experts lie on disk as published, (experts, in, out); else as transformers writes them for a
            model that it did not read, (experts, out, in). It reads both.
        options: as for `make_tiny_qwen3vl`.

    Returns:
        The directory.
    """
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
    }
    path = make_tiny_qwen3vl(path, family="qwen3_vl_moe", text=experts | (text or {}), **options)
    _rewrite_experts(path, twins, transposed)
    return path


def _rewrite_experts(path: Path, twins: bool, transposed: bool) -> None:
    from safetensors.torch import load_file, save_file

    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if twins and (".mlp.experts." in name or ".mlp.gate." in name):
                tensor[TWINS[1]] = tensor[TWINS[0]]
            if transposed and ".mlp.experts." in name:
                tensors[name] = tensor.transpose(1, 2).contiguous()
        save_file(tensors, file, metadata={"format": "pt"})
