"""CUDA ops of the language path at serving sizes.

    python -m benchmarks.language_kernels             # on a GPU; writes benchmarks/results/<device>-language.json
    python -m benchmarks.language_kernels --emulated  # every case once, tiny and untimed, on a machine without one

Each memory-bound op is held against the bytes that it must move at the copy bandwidth measured in the same run; decode
attention against the bytes of the keys and values that it reads; grouped products against the weights they read (few
rows) or the rate of a large bf16 product (many).

Next: benchmarks/gpu/machine.py
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
from tessera_kernels import cuda, ops

MEMORY_TARGET, DECODE_TARGET = 0.85, 0.8
BLOCK_SIZE = 16
Call = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """Of the ops' inputs; the widths are those of Qwen3-VL-8B and of Qwen3.5's linear attention.

    Args:
        tokens: of a prefill.
        hidden: width of the stream.
        inner: width of the feed-forward layer.
        heads: query heads; `kv_heads` and `head_dim` likewise.
        sequences: of a decode step.
        context: tokens behind each.
        state_heads: of linear attention, `state_dim` by `state_dim` each.
        experts: of a mixture; `chosen` of them for each token, `expert_inner` wide.
        vocab: columns of the logits.
    """

    tokens: int = 16384
    hidden: int = 4096
    inner: int = 12288
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    sequences: int = 32
    context: int = 8192
    state_heads: int = 32
    state_dim: int = 128
    experts: int = 128
    chosen: int = 8
    expert_inner: int = 768
    vocab: int = 151936


TINY = Sizes(
    tokens=12, hidden=64, inner=96, heads=4, kv_heads=2, head_dim=64, sequences=3, context=70, state_heads=2,
    state_dim=32, experts=4, chosen=2, expert_inner=32, vocab=1000,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An op.

    Args:
        name: with its size.
        size_bytes: read and written.
        make: makes one call on memory of its own.
        other: torch's way on memory of its own; None where torch has no such op.
        target: least share of the limit.
    """

    name: str
    size_bytes: int
    make: Callable[[], Call]
    other: Callable[[], Call] | None = None
    target: float | None = MEMORY_TARGET


def cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    """Every op of the path that memory bounds, in bf16."""
    yield from _stream_cases(device, s)
    yield from _head_cases(device, s)
    yield from _state_cases(device, s)
    yield from _item_cases(device, s)
    yield _decode_case(device, s)


def _bf16(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _stream_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    def norm() -> Call:
        x, residual, weight = (
            _bf16(device, s.tokens, s.hidden),
            _bf16(device, s.tokens, s.hidden),
            _bf16(device, s.hidden),
        )
        return lambda: cuda.ops().add_rms_norm(x, None, residual, weight, 1e-6)

    def torch_norm() -> Call:
        x, residual, weight = (
            _bf16(device, s.tokens, s.hidden),
            _bf16(device, s.tokens, s.hidden),
            _bf16(device, s.hidden),
        )
        return lambda: F.rms_norm(residual.add_(x), (s.hidden,), weight, 1e-6)

    def swiglu() -> Call:
        gate_up = _bf16(device, s.tokens, 2 * s.inner)
        return lambda: cuda.ops().swiglu(gate_up)

    def torch_swiglu() -> Call:
        gate_up = _bf16(device, s.tokens, 2 * s.inner)
        return lambda: F.silu(gate_up[:, : s.inner]) * gate_up[:, s.inner :]

    yield Case("add_rms_norm", 8 * s.tokens * s.hidden, norm, torch_norm)
    yield Case("swiglu", 6 * s.tokens * s.inner, swiglu, torch_swiglu)


def _caches(device: torch.device, s: Sizes, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = -(-tokens // BLOCK_SIZE)
    first, second = (_bf16(device, blocks, s.kv_heads, BLOCK_SIZE, s.head_dim) for _ in range(2))
    return first, second


def _head_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    width = (s.heads + 2 * s.kv_heads) * s.head_dim

    def store() -> Call:
        qkv, weight = _bf16(device, s.tokens, width), _bf16(device, s.head_dim)
        angles = torch.rand(s.tokens, s.head_dim // 2, device=device)
        cos, sin, slots = angles.cos(), angles.sin(), torch.arange(s.tokens, device=device)
        caches = _caches(device, s, s.tokens)
        heads = (s.heads, s.kv_heads, s.head_dim)
        return lambda: cuda.ops().qk_norm_rope_store(qkv, weight, weight, 1e-6, cos, sin, *heads, *caches, slots)

    # queries are read and written where they are; keys and values go to the cache
    size = s.tokens * (2 * 2 * width + 4 * s.head_dim)
    yield Case("qk_norm_rope_store", size, store)


def _sequences(device: torch.device, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    start = torch.arange(count + 1, dtype=torch.int32, device=device)
    return torch.arange(count, device=device), start, torch.full((count,), 100, dtype=torch.int32, device=device)


def _state_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    count, dim = 4 * s.sequences, s.state_dim
    channels = 3 * s.state_heads * dim

    def rule() -> Call:
        qkv, gates = _bf16(device, count, channels), _bf16(device, count, 2 * s.state_heads)
        rate, bias = (torch.rand(s.state_heads, device=device) for _ in range(2))
        states = torch.randn(count, s.state_heads, dim, dim, device=device)
        sequences = _sequences(device, count)
        return lambda: cuda.ops().gated_delta_rule(qkv, gates, rate, bias, states, *sequences, s.state_heads)

    def conv() -> Call:
        x, weight = _bf16(device, count, channels), _bf16(device, 4, channels)
        states, sequences = _bf16(device, count, channels, 3), _sequences(device, count)
        return lambda: cuda.ops().causal_conv(x, weight, states, *sequences)

    def norm() -> Call:
        x, gate = _bf16(device, s.tokens, s.state_heads, dim), _bf16(device, s.tokens, s.state_heads * dim)
        weight = torch.rand(dim, device=device)
        return lambda: cuda.ops().gated_rms_norm(x, gate, weight, 1e-6)

    yield Case(f"gated_delta_rule, {count} decodes", 8 * count * s.state_heads * dim * dim, rule)
    yield Case(f"causal_conv, {count} decodes", count * channels * (4 + 12), conv)
    yield Case("gated_rms_norm", 6 * s.tokens * s.state_heads * dim, norm)


def _item_cases(device: torch.device, s: Sizes) -> Iterator[Case]:
    def merge(add: bool) -> Callable[[], Call]:
        def make() -> Call:
            hidden, features = _bf16(device, s.tokens, s.hidden), _bf16(device, s.tokens, s.hidden)
            ranges = torch.tensor([[0, s.tokens // 2], [s.tokens // 2, s.tokens]], device=device)
            return lambda: cuda.ops().merge_embeddings(hidden, features, ranges, ranges, add)

        return make

    def combine() -> Call:
        answers = _bf16(device, s.tokens * s.chosen, s.hidden)
        weights = torch.rand(s.tokens, s.chosen, device=device)
        return lambda: cuda.ops().combine_experts(answers, weights, None, None)

    yield Case("merge_embeddings", 4 * s.tokens * s.hidden, merge(False))
    yield Case("merge_embeddings, added", 6 * s.tokens * s.hidden, merge(True))
    yield Case("combine_experts", 2 * s.tokens * (s.chosen + 1) * s.hidden, combine)


def _decode_case(device: torch.device, s: Sizes) -> Case:
    def make() -> Call:
        query = _bf16(device, s.sequences, s.heads, s.head_dim)
        blocks = -(-s.context // BLOCK_SIZE)
        caches = _caches(device, s, s.sequences * blocks * BLOCK_SIZE)
        tables = torch.randperm(s.sequences * blocks, device=device).view(s.sequences, blocks).int()
        start = torch.arange(s.sequences + 1, dtype=torch.int32, device=device)
        lengths = torch.full((s.sequences,), s.context, dtype=torch.int32, device=device)
        hosts = ((1,) * s.sequences, (s.context,) * s.sequences)
        return lambda: ops.paged_attention(query, *caches, tables, start, lengths, *hosts, s.head_dim**-0.5)

    def dense() -> Call:
        query = _bf16(device, s.sequences, s.heads, 1, s.head_dim)
        key, value = (_bf16(device, s.sequences, s.kv_heads, s.context, s.head_dim) for _ in range(2))
        return lambda: F.scaled_dot_product_attention(query, key, value, enable_gqa=True)

    size = 4 * s.sequences * s.context * s.kv_heads * s.head_dim
    return Case(f"paged_attention, {s.sequences} decodes over {s.context}", size, make, dense, DECODE_TARGET)


def memory_figures(machine: Machine, sizes: Sizes) -> Iterator[Figure]:
    """Time the ops that memory bounds."""
    for case in cases(machine.device, sizes):
        count = machine.copies(case.size_bytes)
        ms = machine.milliseconds([case.make() for _ in range(count)])
        other = None if case.other is None else machine.milliseconds([case.other() for _ in range(count)])
        limit = case.size_bytes / 1e6 / machine.copy_gbps if machine.is_timed else math.nan
        yield Figure(case.name, ms, limit, "copy bandwidth", other, "torch", case.target)


def product_figures(machine: Machine, s: Sizes) -> Iterator[Figure]:
    """Time grouped products: a decode step's few rows, and a prefill's many."""
    device = machine.device
    weight = _bf16(device, s.experts, 2 * s.expert_inner, s.hidden)
    for tokens in (1, s.sequences, s.tokens):
        x = _bf16(device, tokens, s.hidden)
        chosen, _ = cuda.ops().choose_experts(
            _bf16(device, tokens, s.experts), None, s.chosen, False, 1, 1, False, True, 1.0
        )
        order, starts = cuda.ops().sort_by_expert(chosen, s.experts)
        ms = machine.milliseconds([lambda x=x, o=order, n=starts: cuda.ops().grouped_linear(x, weight, o, n, True)])  # type: ignore[misc]
        used = len(chosen.unique())
        read = 2 * used * weight[0].numel() / 1e6 / machine.copy_gbps if machine.is_timed else math.nan
        work = 2 * tokens * s.chosen * weight[0].numel() / 1e9
        computed = work / machine.bf16_tflops if machine.is_timed else math.nan
        limit, name = (read, "copy bandwidth") if read > computed else (computed, "bf16 product")
        yield Figure(f"grouped_linear, {tokens} tokens, {used} experts", ms, limit, name)


def rule_figures(machine: Machine, s: Sizes) -> Iterator[Figure]:
    """Time the gated delta rule over one prompt, solved in chunks and, beside that, token by token."""
    tokens, heads, dim, device = max(s.tokens // 8, 64), s.state_heads, s.state_dim, machine.device
    qkv, gates = _bf16(device, tokens, 3 * heads * dim), _bf16(device, tokens, 2 * heads)
    rate, bias = (torch.rand(heads, device=device) for _ in range(2))
    states = torch.zeros(1, heads, dim, dim, device=device)
    lengths = [torch.tensor(values, dtype=torch.int32, device=device) for values in ((0, tokens), (tokens,))]
    slots = torch.zeros(1, dtype=torch.int64, device=device)

    def run(chunked: bool) -> Call:
        return lambda: cuda.ops().gated_delta_rule(qkv, gates, rate, bias, states, slots, *lengths, heads, chunked)

    ms, recurrent_ms = (machine.milliseconds([run(chunked)]) for chunked in (True, False))
    # Of each token: four products with a chunk of 64, three with the state.
    work = 2 * tokens * heads * dim * (4 * 64 + 3 * dim) / 1e9
    limit = work / machine.bf16_tflops if machine.is_timed else math.nan
    yield Figure(f"gated_delta_rule, a prompt of {tokens}", ms, limit, "bf16 product", recurrent_ms, "token by token")


def sampling_figures(machine: Machine, s: Sizes) -> Iterator[Figure]:
    """Time the draw of a step: what is read is the logits, once."""
    from worker.engine.sampler import Sampler
    from worker.engine.sampling_params import SamplingParams
    from worker.engine.sequence import Sequence as EngineSequence
    from worker.engine.sequence import SequenceGroup

    logits = torch.randn(s.sequences, s.vocab, device=machine.device)
    params = SamplingParams(8, temperature=0.8, top_p=0.9, top_k=50, seed=1)
    rows = [
        (row, EngineSequence(SequenceGroup(str(row), (1, 2), params), 0, [1, 2], row)) for row in range(s.sequences)
    ]
    ms = machine.eager_milliseconds(lambda: Sampler().sample(logits, rows))
    limit = logits.nbytes / 1e6 / machine.copy_gbps if machine.is_timed else math.nan
    yield Figure(f"sampling {s.sequences} rows, host time included", ms, limit, "copy bandwidth")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases, print the table, write the figures; returns the exit code, 0 for missed targets, too."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", action="store_true", help="run every case once, tiny, on the CPU")
    parser.add_argument("--out", type=Path, help="file for the figures (default: benchmarks/results)")
    options = parser.parse_args(argv)
    with open_machine(options.emulated) as machine:
        sizes = Sizes() if machine.is_timed else TINY
        figures = [
            *memory_figures(machine, sizes), *product_figures(machine, sizes), *rule_figures(machine, sizes),
            *sampling_figures(machine, sizes),
        ]  # fmt: skip
        print(render(figures))
        if machine.is_timed:
            command = "python -m benchmarks.language_kernels"
            write(options.out or default_path(machine, "language"), figures, machine, command)
        else:
            print("\nEmulated: every case ran; there are no figures without a GPU.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
