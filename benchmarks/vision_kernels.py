"""CUDA ops of the vision path at serving sizes, and the whole tower beside transformers'.

    python -m benchmarks.vision_kernels             # on a GPU; writes benchmarks/results/<device>-vision.json
    python -m benchmarks.vision_kernels --emulated  # every case once, tiny and untimed, on a machine without one

Each memory-bound op is held against the bytes that it must move, each input read once and each output written once, at
the copy bandwidth measured in the same run; attention against the rate of a large bf16 product.

Next: benchmarks/vision_tower.py
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.gpu.machine import Machine, open_machine
from benchmarks.gpu.table import Figure, default_path, render, write
from benchmarks.vision_tower import tower_figures
from tessera_kernels import cuda, flash, ops, reference

MEMORY_TARGET = 0.85
Call = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """Of the ops' inputs; those of Qwen3-VL-2B's tower unless a case says otherwise.

    Args:
        rows: patches.
        hidden: width of the stream.
        heads: of attention.
        inner: width of the feed-forward layer.
        side: patches of a picture's side.
    """

    rows: int = 65536
    hidden: int = 1024
    heads: int = 16
    inner: int = 4096
    side: int = 64


TINY = Sizes(rows=64, hidden=64, heads=2, inner=96, side=8)


@dataclass(frozen=True)
class Case:
    """A memory-bound op.

    Args:
        name: with its size.
        size_bytes: read and written.
        make: makes one call on memory of its own.
        other: torch's way on memory of its own; None where torch has no such op.
    """

    name: str
    size_bytes: int
    make: Callable[[], Call]
    other: Callable[[], Call] | None = None


def memory_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    """Every memory-bound op of the path, in bf16."""
    yield from _stream_cases(device, s)
    yield from _position_cases(device, s)
    yield from _product_cases(device, s)


def _bf16(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _stream_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    def norm(op: str, added: bool, hidden: int) -> Callable[[], Call]:
        def make() -> Call:
            x, residual = _bf16(device, s.rows, hidden), _bf16(device, s.rows, hidden)
            weight, bias = _bf16(device, hidden), _bf16(device, hidden)
            parts = (weight,) if op == "rms_norm" else (weight, bias)
            call = getattr(cuda.ops(), f"add_{op}" if added else op)
            return lambda: call(x, bias, residual, *parts, 1e-6) if added else call(x, *parts, 1e-6)

        return make

    def torch_norm() -> Call:
        x, residual, weight = _bf16(device, s.rows, s.hidden), _bf16(device, s.rows, s.hidden), _bf16(device, s.hidden)
        return lambda: F.layer_norm(residual.add_(x), (s.hidden,), weight, weight, 1e-6)

    tensor = 2 * s.rows * s.hidden
    yield Case("layer_norm", 2 * tensor, norm("layer_norm", False, s.hidden))
    yield Case("add_layer_norm", 4 * tensor, norm("layer_norm", True, s.hidden), torch_norm)
    yield Case("rms_norm", 2 * tensor, norm("rms_norm", False, s.hidden))
    yield Case("add_rms_norm", 4 * tensor, norm("rms_norm", True, s.hidden))
    wide = 1152 if s.hidden == 1024 else s.hidden + 8
    yield Case(f"add_layer_norm, {wide} wide", 8 * s.rows * wide, norm("layer_norm", True, wide))


def _grids(device: torch.device, s: Sizes) -> torch.Tensor:
    count = s.rows // s.side**2
    return torch.tensor([(index * s.side**2, 1, s.side, s.side) for index in range(count)], device=device)


def _position_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    grids, table_side = _grids(device, s), 48
    side = 16 * s.side

    def patches() -> Call:
        pixels = torch.randint(0, 256, (s.rows * 768,), dtype=torch.uint8, device=device)
        items = torch.tensor(
            [(i * s.side**2, i * 3 * side * side, 1, s.side, s.side) for i in range(len(grids))], device=device
        )
        return lambda: cuda.ops().centred_patches(pixels, items, s.rows, 16, 2, 1, 128.0, torch.bfloat16)

    def torch_patches() -> Call:
        frames = torch.randint(0, 256, (len(grids), side, side, 3), dtype=torch.uint8, device=device)
        return lambda: reference.centred_patches(frames, 16, 2, 1, 128.0, torch.bfloat16)

    def add(cubic: bool) -> Callable[[], Call]:
        def make() -> Call:
            index, weight = cuda.ops().position_taps(grids, s.rows, 2, table_side, cubic)
            x, table = _bf16(device, s.rows, s.hidden), _bf16(device, table_side**2, s.hidden)
            return lambda: cuda.ops().add_positions(x, None, table, index, weight)

        return make

    inv_freq = torch.rand(s.hidden // s.heads // 4, device=device)
    yield Case("centred_patches", s.rows * 768 * 3, patches, torch_patches)
    for cubic, taps in ((False, 4), (True, 16)):
        kind = "bicubic" if cubic else "bilinear"
        yield Case(
            f"position_taps, {kind}", s.rows * taps * 8,
            lambda cubic=cubic: lambda: cuda.ops().position_taps(grids, s.rows, 2, table_side, cubic),  # type: ignore[misc]
        )  # fmt: skip
        # The table stays in the second cache: what moves is the stream, and each row's indices and weights.
        yield Case(f"add_positions, {kind}", s.rows * (4 * s.hidden + taps * 8), add(cubic))
    yield Case(
        "vision_rotary", s.rows * len(inv_freq) * 2 * 8,
        lambda: lambda: cuda.ops().vision_rotary(grids, s.rows, 2, inv_freq),
    )  # fmt: skip


def _product_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    def prepare(head_dim: int, padded: int) -> Callable[[], Call]:
        def make() -> Call:
            qkv, bias = (_bf16(device, *shape, 3 * s.heads * head_dim) for shape in ((s.rows,), ()))
            angles = torch.rand(s.rows, head_dim // 2, device=device)
            cos, sin = angles.cos(), angles.sin()
            return lambda: cuda.ops().qkv_prepare(qkv, bias, cos, sin, s.heads, padded)

        return make

    for head_dim, padded in ((s.hidden // s.heads, s.hidden // s.heads), (72, 72), (72, 80)):
        size = s.rows * (2 * 3 * s.heads * (head_dim + padded) + 4 * head_dim)
        yield Case(f"qkv_prepare, heads of {head_dim} to {padded}", size, prepare(head_dim, padded))

    def gelu(tanh: bool) -> Callable[[], Call]:
        def make() -> Call:
            x, bias = _bf16(device, s.rows, s.inner), _bf16(device, s.inner)
            return lambda: cuda.ops().bias_gelu(x, bias, tanh)

        return make

    def torch_gelu() -> Call:
        x, bias = _bf16(device, s.rows, s.inner), _bf16(device, s.inner)
        return lambda: F.gelu(x + bias, approximate="tanh")

    def swiglu() -> Call:
        gate_up = _bf16(device, s.rows, 2 * s.inner)
        return lambda: cuda.ops().swiglu(gate_up)

    yield Case("bias_gelu, tanh", 4 * s.rows * s.inner, gelu(True), torch_gelu)
    yield Case("bias_gelu, exact", 4 * s.rows * s.inner, gelu(False))
    yield Case("swiglu", 6 * s.rows * s.inner, swiglu)


def memory_figures(machine: Machine, sizes: Sizes) -> Iterator[Figure]:
    """Time the memory-bound ops."""
    for case in memory_cases(machine.device, sizes):
        count = machine.copies(case.size_bytes)
        ms = machine.milliseconds([case.make() for _ in range(count)])
        other = None if case.other is None else machine.milliseconds([case.other() for _ in range(count)])
        limit = case.size_bytes / 1e6 / machine.copy_gbps if machine.is_timed else math.nan
        yield Figure(case.name, ms, limit, "copy bandwidth", other, "torch", MEMORY_TARGET)


def attention_figures(machine: Machine, sizes: Sizes) -> Iterator[Figure]:
    """Time attention of pictures, beside torch's: flash with lengths, and one batch of equal pictures."""
    length = sizes.side**2
    for head_dim in (64, 72):
        rows = _bf16(machine.device, 3, sizes.rows, sizes.heads, head_dim)
        query, key, value = rows.unbind(0)
        segments = ops.Segments.of([length] * (sizes.rows // length), machine.device)
        scale = head_dim**-0.5
        starts = segments.starts
        ours = machine.milliseconds(
            [lambda q=query, k=key, v=value, n=starts, s=scale: cuda.ops().segment_attention(q, k, v, n, s, False)]  # type: ignore[misc]
        )
        work = 4 * sizes.rows * length * sizes.heads * head_dim
        limit = work / 1e9 / machine.bf16_tflops if machine.is_timed else math.nan
        others: dict[str, Call] = {
            "torch's batched attention": lambda q=query, k=key, v=value: _batched(q, k, v, length)
        }  # type: ignore[misc]
        if machine.is_timed:
            others["torch's varlen flash"] = lambda q=query, k=key, v=value, s=scale, n=starts: (  # type: ignore[misc]
                flash.flash_varlen(q, k, v, n, length, s, False)
            )
        for name, call in others.items():
            other = machine.eager_milliseconds(call)
            yield Figure(f"segment_attention, heads of {head_dim}", ours, limit, "bf16 product", other, name)


def _batched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int) -> torch.Tensor:
    """Attention of pictures of one size, as torch chooses it."""
    heads = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, write the figures; returns the exit code, 0 for missed targets, too."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vision_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="run every case once, tiny, on the CPU")
    parser.add_argument("--out", type=Path, help="file for the figures (default: benchmarks/results)")
    options = parser.parse_args(argv)
    with open_machine(options.emulated) as machine:
        sizes = Sizes() if machine.is_timed else TINY
        figures = [*memory_figures(machine, sizes), *attention_figures(machine, sizes), *tower_figures(machine)]
        print(render(figures))
        if machine.is_timed:
            write(
                options.out or default_path(machine, "vision"), figures, machine, "python -m benchmarks.vision_kernels"
            )
        else:
            print("\nEmulated: every case ran; there are no figures without a GPU.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
