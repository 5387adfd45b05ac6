"""Which implementation each op has, and why: what the start log and `Describe` say.

Next: kernels/tessera_kernels/ops.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tessera_kernels import cpu, cuda, linear, moe


@dataclass(frozen=True)
class Choice:
    """How an op is run.

    Args:
        implementation: "cuda", "cpp", "onednn" or "torch".
        reason: in a few words.
    """

    implementation: str
    reason: str


# Attention of the C++ library takes heads of whole vectors alone.
_HEAD_OPS = ("paged_attention", "segment_attention")
_CPP_OPS = (
    "add_layer_norm", "add_rms_norm", "causal_conv", "centred_patches", "gated_delta_rule", "gated_rms_norm",
    "layer_norm", "qk_norm_rope", "rms_norm", "rope_qk", "store_kv",
)  # fmt: skip
_TORCH_ON_CPU = (
    "interpolate_positions", "interpolate_positions_bicubic", "penalised_logits", "rotary_table", "sample",
)  # fmt: skip


def implementations(dtype: torch.dtype, device: torch.device, head_dims: Sequence[int] = ()) -> dict[str, Choice]:
    """Return how each op is run, by name.

    Args:
        dtype: of the model.
        device: of the model.
        head_dims: head sizes of the attention layers (language model, vision tower), which the C++ ones limit.
    """
    table = _on_cuda(dtype, device) if cuda.runs_on(device, dtype) else _without_cuda(dtype, device, head_dims)
    return dict(sorted(table.items()))


def _on_cuda(dtype: torch.dtype, device: torch.device) -> dict[str, Choice]:
    ours = Choice("cuda", cuda.reason())
    product = Choice(linear.implementation(dtype, device), "cuBLAS through torch; its biases and activations are ours")
    experts = Choice(moe.implementation(dtype, device), cuda.reason())
    return dict.fromkeys(cuda.NAMES, ours) | {"experts": experts, "linear": product}


def _without_cuda(dtype: torch.dtype, device: torch.device, head_dims: Sequence[int]) -> dict[str, Choice]:
    reason = _why_torch(dtype, device)
    native = reason is None
    fallback = Choice("torch", reason or "")
    table = dict.fromkeys((*_CPP_OPS, *_HEAD_OPS), Choice("cpp", "fp32 on this processor") if native else fallback)
    if native and any(head_dim % cpu.lanes() for head_dim in head_dims):
        table |= dict.fromkeys(_HEAD_OPS, Choice("torch", f"head sizes {list(head_dims)} are no whole vectors"))
    small = Choice("torch", "small tensors, once a step or an item") if native else fallback
    table |= dict.fromkeys(_TORCH_ON_CPU, small)
    for name, implementation in (
        ("experts", moe.implementation(dtype, device)), ("linear", linear.implementation(dtype, device)),
    ):  # fmt: skip
        table[name] = Choice(implementation, "fp32 on this processor" if implementation != "torch" else reason or "")
    return table


def _why_torch(dtype: torch.dtype, device: torch.device) -> str | None:
    """Return why torch's ops serve; None where the C++ library does."""
    if device.type != "cpu":
        return cuda.reason()
    if not cpu.available():
        return "the C++ library is not built (make kernels), or not for this processor"
    if dtype is not torch.float32:
        return f"the C++ library takes fp32, not {str(dtype).removeprefix('torch.')}"
    return None
