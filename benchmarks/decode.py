"""How fast do tokens follow once requests decode, alone and eight at once?

Next: throughput.py
"""

from benchmarks.row import Row, compared
from benchmarks.stage import Stage
from benchmarks.timeline import agreement


def decode_1(stage: Stage) -> Row:
    """The engine's tokens a second over transformers' `generate`, one request."""
    return _decode(stage, "decode_1", 1, target=1.8, rounds=stage.scale.short_rounds)


def decode_8(stage: Stage) -> Row:
    """The engine's tokens a second while eight decode over transformers' padded batch of eight."""
    return _decode(stage, "decode_8", stage.scale.batch, target=2.0, rounds=stage.scale.long_rounds)


def _decode(stage: Stage, name: str, batch: int, *, target: float, rounds: int) -> Row:
    race = stage.race(("engine", "transformers"), batch, stage.scale.new_tokens, rounds)
    return compared(
        name,
        [run.decode_tokens_s for run in race.ours],
        [run.decode_tokens_s for run in race.other],
        target=target,
        unit="tok/s",
        limit=stage.costs.decode_tokens_s(race.machine, batch),
        note=agreement(race.ours, race.other),
    )
