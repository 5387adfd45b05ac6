"""Part "pair": requests with a picture through gateway and worker over gRPC, and transformers' `generate` on the same.

Both serve one checkpoint, one after the other, each in a process of its own, with the whole device to itself. Requests
of a round come together; none is asked twice. The limit counts the model's own work alone: products at the measured
rate, weights and caches at the measured bandwidth (benchmarks/costs.py).

Next: benchmarks/gpu/serving_checkpoint.py
"""

import importlib.util
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.costs import Costs
from benchmarks.costs import Machine as Rates
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.serving_plan import Plan
from benchmarks.gpu.table import Figure
from benchmarks.process import Contestant
from benchmarks.timeline import Timeline, agreement

NEEDED = (
    "gateway.__main__", "gateway.server", "gateway.media.child", "worker.__main__", "worker.server", "worker.boot",
    "tessera_client.async_client", "tokenizers",
)  # fmt: skip
_WARM_UP_NUMBER = 2_000_000


def import_needed() -> None:
    """Import what the part's processes will, before a checkpoint is made for nothing.

    Raises:
        ImportError: something is not installed, or the stubs of the protos are not made.
    """
    for name in NEEDED:
        importlib.import_module(name)
    if importlib.util.find_spec("transformers") is None:  # its import takes long, and only its own process needs it
        raise ModuleNotFoundError("No module named 'transformers'")


@dataclass(frozen=True)
class Answers:
    """Rounds of one contestant with so many requests at once.

    Args:
        whole: rounds of full answers.
        first: rounds that tell the first token's time; of the pair the same ones, of transformers such as end there.
    """

    whole: list[Timeline]
    first: list[Timeline]

    @property
    def tokens_s(self) -> float:
        """Generated tokens a second, prefill included; the middle of the rounds."""
        return statistics.median(run.total_tokens_s for run in self.whole)

    def first_token_ms(self, share: float) -> float:
        """Return what this share of all requests' first tokens took at most."""
        times = sorted(arrivals[0] for run in self.first for arrivals in run.arrivals)
        return 1000 * times[max(0, math.ceil(share * len(times)) - 1)]


def pair_figures(machine: Machine, plan: Plan) -> list[Figure]:
    """Serve, generate, compare.

    Raises:
        ImportError: see `import_needed`.
        ContestantError: a process failed; the message ends with why.
    """
    import_needed()
    with tempfile.TemporaryDirectory(prefix="tessera-serving-") as name:
        folder = Path(name)
        Contestant("benchmarks.gpu.serving_checkpoint:write_checkpoint", folder, plan.served, plan.device).close()
        threads = 0 if machine.is_timed else 1
        ours = _ask(
            Contestant("benchmarks.contestants.served_pair:ServedPair", folder, threads, plan.worker, plan.gateway),
            plan,
            again_for_first=False,
        )
        other = _ask(
            Contestant("benchmarks.contestants.generate_gpu:GenerateOnGpu", folder, plan.device, plan.dtype),
            plan,
            again_for_first=True,
        )
    costs = Costs(plan.served.size, plan.new_tokens, plan.dtype.itemsize)
    return [
        figure
        for count in plan.rounds
        for figure in _compare(machine, plan.served.name, count, costs, ours[count], other[count])
    ]


def _ask(contestant: Contestant, plan: Plan, again_for_first: bool) -> dict[int, Answers]:
    """Let a contestant answer all rounds, and end it; both contestants get the same requests."""
    answers = {}
    number = 0
    try:
        for count, rounds in plan.rounds.items():
            contestant.call("run", _WARM_UP_NUMBER + number, count, 2)
            starts = range(number, number + rounds * count, count)
            whole = [contestant.call("run", start, count, plan.new_tokens) for start in starts]
            first = [contestant.call("run", start, count, 1) for start in starts] if again_for_first else whole
            answers[count] = Answers(whole, first)
            number += rounds * count
            if plan.device == "cuda":  # at once, since the table waits for both contestants
                seen = answers[count]
                told = f"{seen.tokens_s:.0f} tokens/s, first token {seen.first_token_ms(0.5):.1f} ms"
                print(f"{contestant.name}, {count} at once: {told}", file=sys.stderr, flush=True)
    finally:
        contestant.close()
    return answers


def _compare(machine: Machine, name: str, count: int, costs: Costs, ours: Answers, other: Answers) -> Iterator[Figure]:
    same = agreement(ours.whole, other.whole)
    cases = f"{name}, {count} at once: first token (p50)", f"{name}, {count} at once: a token of any request"
    if not machine.is_timed:
        for case in cases:
            yield Figure(case, math.nan, math.nan, "bandwidth and products", other="transformers", note=same)
        return
    rates = Rates(1e9 * machine.copy_gbps, 1e12 * machine.bf16_tflops)
    # Half of the requests have their first token when half of the prompts have been computed.
    prefill_ms = 1000 * costs.prefill_s(rates) * -(-count // 2)
    p50, p99 = ours.first_token_ms(0.5), ours.first_token_ms(0.99)
    theirs = other.first_token_ms(0.5)
    note = f"p99 {p99:.1f} ms (transformers {other.first_token_ms(0.99):.1f})"
    yield Figure(cases[0], p50, prefill_ms, "bf16 product", theirs, "transformers", note=note)
    limit_ms = 1000 / costs.total_tokens_s(rates, count)
    note = f"{ours.tokens_s:.0f} tokens/s (transformers {other.tokens_s:.0f}); {same}"
    per_token = 1000 / ours.tokens_s, 1000 / other.tokens_s
    yield Figure(cases[1], per_token[0], limit_ms, "bandwidth and products", per_token[1], "transformers", note=note)
