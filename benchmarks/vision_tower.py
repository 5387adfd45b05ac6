"""The whole vision tower of Qwen3-VL-2B's shape, random weights, beside transformers' with its best attention.

Both take what their servers hand them, on the device already: uint8 pixels here, normalised patches there. Parity is
taken in the same run: both in bf16, and ours in fp32, against transformers in fp32.

Next: benchmarks/gpu/machine.py
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.table import Figure
from tessera_kernels import reference
from worker.models.base import EncoderInput
from worker.models.encoder import VisionEncoder
from worker.models.loader import load_encoders

RATIO_TARGET, GEMM_TARGET = 1.5, 0.6
_MEAN = _STD = 0.5


@dataclass(frozen=True)
class Shape:
    """Of a tower.

    Args:
        hidden: width of the stream.
        depth: blocks.
        heads: of attention.
        inner: width of the feed-forward layer.
        out: width of an embedding.
        deepstack: blocks whose output is merged on the way.
    """

    hidden: int = 1024
    depth: int = 24
    heads: int = 16
    inner: int = 4096
    out: int = 2048
    deepstack: tuple[int, ...] = (5, 11, 17)

    def flops(self, grids: list[tuple[int, int, int]]) -> int:
        """Return the multiplications and additions of products and attention for these items."""
        h, merged = self.hidden, 4 * self.hidden
        patches = sum(math.prod(grid) for grid in grids)
        block = 2 * patches * (4 * h * h + 2 * h * self.inner)
        attention = sum(4 * t * (rows * columns) ** 2 * h for t, rows, columns in grids)
        mergers = 2 * (patches // 4) * (merged * merged + merged * self.out) * (1 + len(self.deepstack))
        embedding = 2 * patches * 3 * 2 * 256 * h
        return self.depth * (block + attention) + mergers + embedding


TINY = Shape(hidden=64, depth=2, heads=2, inner=96, out=64, deepstack=(0,))


class Counter(TorchDispatchMode):
    """Counts the ops that launch something."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = 0
        self.others = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op and count it, unless it only makes a view or memory."""
        if func.namespace.startswith("tessera"):
            self.ours += 1
        elif func.__name__.split(".")[0] in _LAUNCHING:
            self.others += 1
        return func(*args, **(kwargs or {}))


_LAUNCHING = {"mm", "addmm", "cat", "stack", "clone", "copy_", "_to_copy", "add", "mul", "gelu", "zero_", "fill_"}


def tower_figures(machine: Machine) -> Iterator[Figure]:
    """Time both towers on pictures and a clip."""
    shape = Shape() if machine.is_timed else TINY
    with tempfile.TemporaryDirectory(prefix="tessera-tower-") as folder:
        theirs = _make(Path(folder), shape)
        [ours] = load_encoders(Path(folder), torch.bfloat16, machine.device)
        [exact] = load_encoders(Path(folder), torch.float32, machine.device)
    assert isinstance(ours, VisionEncoder) and isinstance(exact, VisionEncoder)
    side, clip_side = (64, 32) if machine.is_timed else (4, 4)
    clip = [(32 if machine.is_timed else 2, clip_side, clip_side)]
    images = 16 if machine.is_timed else 3
    cases = {
        f"1 image of {16 * side}²": [(1, side, side)],
        f"{images} images of {16 * side}²": [(1, side, side)] * images,
        f"a clip of {2 * clip[0][0]} frames of {16 * clip_side}²": clip,
    }
    parity = _parity(machine, theirs, ours, exact)
    for name, grids in cases.items():
        yield from _compare(machine, shape, name, grids, theirs, ours, parity)


def _compare(
    machine: Machine,
    shape: Shape,
    name: str,
    grids: list[tuple[int, int, int]],
    theirs: Any,
    ours: VisionEncoder,
    parity: str,
) -> Iterator[Figure]:
    items = [_item(machine, grid, seed) for seed, grid in enumerate(grids)]
    rows, table = _patches(items, torch.bfloat16)
    with Counter() as counter:
        ours(items)
    ms = machine.eager_milliseconds(lambda: ours(items))
    best, best_ms = "", math.inf
    for attention in ("sdpa", "flash_attention_2", "eager") if machine.is_timed else ("sdpa",):
        try:
            theirs.bfloat16().set_attn_implementation(attention)
            other = machine.eager_milliseconds(lambda: theirs(rows, grid_thw=table))
        except (ImportError, ValueError, torch.OutOfMemoryError):
            continue  # not installed there, or its scores do not fit
        if not other >= best_ms:
            best, best_ms = attention, other
    limit = shape.flops(grids) / 1e9 / machine.bf16_tflops if machine.is_timed else math.nan
    launches = f"{counter.ours} ops of ours, {counter.others} of torch; {parity}"
    figure = Figure(
        f"tower, {name}", ms, limit, "bf16 product", best_ms, f"transformers ({best})", RATIO_TARGET, True, launches
    )
    yield figure
    if len(grids) > 1:
        yield Figure(f"tower, {name}", ms, limit, "bf16 product", target=GEMM_TARGET)


def _make(folder: Path, shape: Shape) -> Any:
    """Write a checkpoint of the tower alone; return transformers' model of it, fp32."""
    from transformers import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    vision = {
        "hidden_size": shape.hidden, "depth": shape.depth, "num_heads": shape.heads, "intermediate_size": shape.inner,
        "out_hidden_size": shape.out, "deepstack_visual_indexes": list(shape.deepstack), "patch_size": 16,
    }  # fmt: skip
    config = Qwen3VLConfig(vision_config=vision, text_config={"hidden_size": shape.out})
    torch.manual_seed(0)
    with torch.inference_mode(False):
        model = Qwen3VLVisionModel._from_config(config.vision_config).eval()
    weights = {f"model.visual.{name}": tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    document = config.to_dict() | {"architectures": ["Qwen3VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(document))
    return model


def _item(machine: Machine, grid: tuple[int, int, int], seed: int) -> EncoderInput:
    t, height, width = grid
    shape = (1 if t == 1 else 2 * t, 16 * height, 16 * width, 3)
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return EncoderInput("image" if t == 1 else "video", "pixels_u8", pixels.to(machine.device), grid)


def _patches(items: list[EncoderInput], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers' processor makes of the same pixels, and its table of grids."""
    rows = []
    for item in items:
        frames = item.tensor.expand(2, -1, -1, -1) if item.tensor.shape[0] == 1 else item.tensor
        rows.append(reference.patchify((frames.float() / 255 - _MEAN) / _STD, 16, 2, 2).to(dtype))
    return torch.cat(rows), torch.tensor([item.grid_thw for item in items], device=rows[0].device)


def _parity(machine: Machine, theirs: Any, ours: VisionEncoder, exact: VisionEncoder) -> str:
    """Compare with transformers in fp32: theirs and ours in bf16, ours in fp32; RMS error ratios."""
    items = [_item(machine, grid, 7) for grid in ((1, 4, 6), (2, 4, 4))]
    rows, table = _patches(items, torch.float32)
    theirs.float().to(machine.device).set_attn_implementation("sdpa")
    truth = _merged(theirs(rows, grid_thw=table))
    in_bf16 = _merged(theirs.bfloat16()(rows.bfloat16(), grid_thw=table)).float()

    def error(values: torch.Tensor) -> float:
        return float((values.float() - truth).square().mean().sqrt() / truth.square().mean().sqrt())

    of_ours, of_exact = (torch.cat([output.embeddings for output in encoder(items)]) for encoder in (ours, exact))
    return f"error: fp32 {error(of_exact):.1e}, bf16 {error(of_ours):.1e} (transformers {error(in_bf16):.1e})"


def _merged(output: Any) -> torch.Tensor:
    """The merged embeddings of transformers' output, whose form differs from release to release."""
    if hasattr(output, "pooler_output"):
        return output.pooler_output
    return output[0]
