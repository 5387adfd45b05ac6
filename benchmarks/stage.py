"""What all questions share: the model, the contestants that are alive, fresh request numbers.

Next: first_token.py
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.costs import Costs, Machine
from benchmarks.interleave import interleave, median
from benchmarks.process import Contestant
from benchmarks.scale import Scale
from benchmarks.timeline import Timeline

_PACKAGE = "benchmarks.contestants"
_TARGETS = {
    "transformers": f"{_PACKAGE}.hugging_face:HuggingFace",
    "engine": f"{_PACKAGE}.engine:BareEngine",
    "pair": f"{_PACKAGE}.served_pair:ServedPair",
    "our pixels": f"{_PACKAGE}.pixels:OurPixels",
    "transformers pixels": f"{_PACKAGE}.pixels:HuggingFacePixels",
    "machine": f"{_PACKAGE}.machine:MachineTest",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Race:
    """Runs of two contestants on the same requests, round by round, and the machine meanwhile."""

    ours: list[Timeline]
    other: list[Timeline]
    machine: Machine


class Stage:
    """Starts contestants when they are first asked for, and ends them all on leaving.

    Args:
        model_dir: the checkpoint.
        scale: of the runs.
    """

    def __init__(self, model_dir: Path, scale: Scale) -> None:
        self.model_dir = model_dir
        self.scale = scale
        self.costs = Costs(scale.model, scale.new_tokens)
        self._exit = ExitStack()
        self._alive: dict[str, Contestant] = {}
        self._next_request = 0

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def start(self, target: str, *arguments: object) -> Contestant:
        """Start a process for one question; it lives until the stage is left, or is closed before."""
        contestant = Contestant(target, *arguments)
        self._exit.callback(contestant.close)
        return contestant

    def contestant(self, name: str) -> Contestant:
        """Return the contestant of a name in _TARGETS, loaded once and shared by the questions."""
        if name not in self._alive:
            self._alive[name] = self.start(_TARGETS[name], self.model_dir, self.scale.threads)
        return self._alive[name]

    def race(self, names: tuple[str, str], batch: int, new_tokens: int, rounds: int) -> Race:
        """Let two contestants answer the same fresh requests in turn.

        Args:
            names: ours, then the other.
            batch: requests of a round.
            new_tokens: of each request.
            rounds: of the race.
        """
        ours, other = (self._warm(name) for name in names)
        start = self._next_request
        self._next_request += rounds * batch

        def runner(contestant: Contestant) -> Callable[[int], Timeline]:
            return lambda number: contestant.call("run", start + number * batch, batch, new_tokens)

        return Race(*self.in_turn(runner(ours), runner(other), rounds))

    def _warm(self, name: str) -> Contestant:
        """Return a contestant that has run before."""
        fresh = name not in self._alive
        contestant = self.contestant(name)
        if fresh:
            contestant.call("warm_up")
        return contestant

    def in_turn(
        self, ours: Callable[[int], T], other: Callable[[int], T], rounds: int
    ) -> tuple[list[T], list[T], Machine]:
        """Run ours, the other and the machine's test in turn.

        Returns:
            What ours returned, what the other returned, and the medians of the machine.
        """
        machine = self.contestant("machine").bind("measure")
        runs: dict[str, list[Any]] = interleave({"ours": ours, "other": other, "machine": lambda _: machine()}, rounds)
        read = median(one.read_bytes_s for one in runs["machine"])
        gemm = median(one.gemm_flop_s for one in runs["machine"])
        return runs["ours"], runs["other"], Machine(read, gemm)
