"""Times every C++ CPU op beside torch, interleaved, and prints one table; "fixed" is cpp in the batch-invariant mode.

    python kernels/bench.py [--threads 1] [--rounds 20]

With one thread it counts processor time, so that other programs on the machine disturb it little. Shapes are those of
the benchmark model in ../benchmarks: hidden 1024, ffn 3072, 16/8 heads of 128; vision 768, 12 heads of 64, 784 patches.

Next: kernels/README.md
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tessera_kernels import cpu, gated_delta, invariance, ops, reference, reference_gated_delta
from tessera_kernels.linear import CppWeight, LinearWeight, OneDnnWeight, TorchWeight
from tessera_kernels.moe import CppExperts, ExpertWeights, TorchExperts

CPU = torch.device("cpu")
Call = Callable[[], object]
Case = tuple[str, float, str, dict[str, Call]]  # name, work (1e9 of unit), unit a second, calls by implementation


def in_fixed_order(call: Call) -> Call:
    """Return a call that runs in the batch-invariant mode."""

    def run() -> object:
        with invariance.using(True):
            return call()

    return run


def linear_cases() -> Iterator[Case]:
    """Weights larger than the caches, so that they are streamed as in a decode step."""
    few = [(rows, 32768, 1024) for rows in (1, 4, 8)]
    for rows, out_features, in_features in (*few, (271, 6144, 1024), (784, 3072, 768)):
        x, weight = torch.randn(rows, in_features), torch.randn(out_features, in_features)
        kinds: dict[str, type[LinearWeight]] = {"torch": TorchWeight, "onednn": OneDnnWeight, "cpp": CppWeight}
        calls: dict[str, Call] = {}
        for name, kind in kinds.items():
            made = kind(out_features, in_features, torch.float32, CPU)
            made.write_rows(0, weight)
            made.seal()
            calls[name] = lambda made=made, x=x: made.apply(x)  # type: ignore[misc]
        calls["fixed"] = in_fixed_order(calls["cpp"])
        streamed = rows <= 8
        work = weight.nbytes / 1e9 if streamed else 2 * rows * weight.numel() / 1e9
        yield f"linear {rows} x {in_features} -> {out_features}", work, "GB/s" if streamed else "GFLOP/s", calls


def attention_cases() -> Iterator[Case]:
    """Decodes of one and eight sequences, a prompt's prefill, and a picture's attention."""
    for sequences, query_len, kv_len in ((1, 1, 335), (4, 1, 335), (8, 1, 335), (1, 271, 271), (1, 1, 4096)):
        width = -(-kv_len // 16)
        caches = [torch.randn(sequences * width, 8, 16, 128) for _ in range(2)]
        tables = torch.randperm(sequences * width).view(sequences, width).int()
        query = torch.randn(sequences * query_len, 16, 128)
        start = torch.arange(sequences + 1, dtype=torch.int32) * query_len
        lengths = torch.full((sequences,), kv_len, dtype=torch.int32)
        lens = ([query_len] * sequences, [kv_len] * sequences)
        arguments = (query, *caches, tables)
        calls: dict[str, Call] = {
            "torch": lambda a=arguments, n=lens: reference.paged_attention(*a, *n, 0.09),  # type: ignore[misc]
            "cpp": lambda a=arguments, s=start, k=lengths: cpu.paged_attention(*a, s, k, 0.09),  # type: ignore[misc]
            "fixed": lambda a=arguments, s=start, k=lengths: cpu.paged_attention(*a, s, k, 0.09, True),  # type: ignore[misc]
        }
        read = sequences * kv_len * 8 * 128 * 2 * 4 / 1e9
        yield f"paged attention {sequences} x {query_len} over {kv_len}", read, "GB/s", calls
    qkv = torch.randn(784, 3, 12, 64)
    calls = {
        "torch": lambda: reference.segment_attention(qkv, [784], 0.125),
        "cpp": lambda: cpu.segment_attention(qkv, [784], 0.125),
    }
    yield "segment attention 784", 784 * 784 * 12 * 64 * 4 / 1e9, "GFLOP/s", calls


def expert_cases() -> Iterator[Case]:
    """Eight of sixteen experts of Qwen3-VL-30B-A3B's size a token, for decode steps and a prompt."""
    num_experts, hidden, inner, choices = 16, 2048, 768, 8
    stores: dict[str, ExpertWeights] = {}
    for name, kind in (("torch", TorchExperts), ("cpp", CppExperts)):
        made = stores[name] = kind(num_experts, hidden, inner, torch.float32, CPU)
        for expert in range(num_experts):
            made.write_gate_up(expert, 0, torch.randn(2 * inner, hidden))
            made.write_down(expert, 0, torch.randn(hidden, inner))
    for rows in (1, 4, 271):
        x, weights = torch.randn(rows, hidden), torch.rand(rows, choices)
        chosen = torch.rand(rows, num_experts).topk(choices).indices
        arguments = (x, chosen, weights)
        calls: dict[str, Call] = {
            name: lambda store=store, a=arguments: store.apply(*a)  # type: ignore[misc]
            for name, store in stores.items()
        }
        calls["fixed"] = in_fixed_order(calls["cpp"])
        numbers = 3 * hidden * inner
        few = rows <= 4
        work = chosen.unique().numel() * numbers * 4 / 1e9 if few else 2 * rows * choices * numbers / 1e9
        yield f"experts {rows} x {choices} of {num_experts}", work, "GB/s" if few else "GFLOP/s", calls


def state_cases() -> Iterator[Case]:
    """Linear attention of Qwen3.5-9B's size: decodes of one and eight sequences, and a prompt's prefill."""
    key_heads, heads, dim, taps = 16, 32, 128, 4
    channels = (2 * key_heads + heads) * dim
    gate_weights, weight = (torch.ones(heads), torch.zeros(heads)), torch.randn(taps, channels)
    for count, query_len in ((1, 1), (8, 1), (1, 271)):
        start = torch.arange(count + 1, dtype=torch.int32) * query_len
        lengths = torch.full((count,), 2 * query_len, dtype=torch.int32)
        lens = (query_len,) * count, (2 * query_len,) * count
        sequences = ops.Sequences(torch.randperm(count), start, lengths, *lens)
        qkv, gates = torch.randn(count * query_len, channels), torch.randn(count * query_len, 2 * heads)
        carried, states = torch.randn(count, channels, taps - 1), torch.randn(count, heads, dim, dim)
        conv, rule = (qkv, weight, carried, sequences), (qkv, gates, *gate_weights, states, sequences, key_heads)
        theirs, ours = reference_gated_delta, gated_delta
        for name, functions, arguments, work in (
            ("causal_conv", (theirs.causal_conv, ours.causal_conv), conv, 2 * qkv.nbytes),
            ("gated_delta_rule", (theirs.gated_delta_rule, ours.gated_delta_rule), rule, 2 * states.nbytes),
        ):
            calls: dict[str, Call] = {
                kind: lambda f=function, a=arguments: f(*a)  # type: ignore[misc]
                for kind, function in zip(("torch", "cpp"), functions, strict=True)
            }
            few = query_len == 1 or name == "causal_conv"
            amount = work if few else 6 * query_len * states.numel()
            yield f"{name} {count} x {query_len}", amount / 1e9, "GB/s" if few else "GFLOP/s", calls


def pointwise_cases() -> Iterator[Case]:
    """The ops between the products, for eight rows and for a picture."""
    for rows in (8, 784):
        x, residual, weight = torch.randn(rows, 1024), torch.randn(rows, 1024), torch.randn(1024)
        qkv, angles, norm = torch.randn(rows, 32 * 128), torch.randn(rows, 64), torch.randn(128)
        rope = (qkv, norm, norm, 1e-6, angles.cos(), angles.sin(), 16, 8)
        for name, ours, theirs, arguments, traffic in (
            ("add_rms_norm", ops.add_rms_norm, reference.add_rms_norm, (x, residual, weight, 1e-6), 4 * x.nbytes),
            ("qk_norm_rope", ops.qk_norm_rope, reference.qk_norm_rope, rope, qkv.nbytes * 3 // 2),
        ):
            calls: dict[str, Call] = {
                "torch": lambda f=theirs, a=arguments: f(*a),  # type: ignore[misc]
                "cpp": lambda f=ours, a=arguments: f(*a),  # type: ignore[misc]
            }
            yield f"{name} {rows}", traffic / 1e9, "GB/s", calls


def best_times(calls: dict[str, Call], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Return the shortest time of each call, in seconds; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not cpu.available():
        raise SystemExit("the C++ CPU library is not built here: run `make kernels`")
    clock = time.process_time if options.threads == 1 else time.perf_counter
    print(f"{torch.backends.cpu.get_cpu_capability()}, {options.threads} thread(s), {cpu.lanes()} lanes, best of each")
    with torch.inference_mode():
        for cases in (linear_cases(), expert_cases(), attention_cases(), state_cases(), pointwise_cases()):
            for name, work, unit, calls in cases:
                times = best_times(calls, options.rounds, clock)
                shown = "  ".join(f"{kind} {seconds * 1e3:8.3f} ms" for kind, seconds in times.items())
                rate = f"{work / times['cpp']:6.1f} {unit}"
                print(f"{name:32} {shown}  {rate:>16}  {times['torch'] / times['cpp']:5.2f} x torch", flush=True)


if __name__ == "__main__":
    main()
