"""How many tokens a second do eight requests get that come together, through the pair?

Next: pair.py
"""

from benchmarks.row import Row, compared
from benchmarks.stage import Stage
from benchmarks.timeline import agreement


def total_8(stage: Stage) -> Row:
    """All generated tokens over wall time, over transformers' padded batch, preprocessing included on both sides."""
    scale = stage.scale
    race = stage.race(("pair", "transformers"), scale.batch, scale.new_tokens, scale.long_rounds)
    return compared(
        "total_8",
        [run.total_tokens_s for run in race.ours],
        [run.total_tokens_s for run in race.other],
        target=1.25,
        unit="tok/s",
        limit=stage.costs.total_tokens_s(race.machine, scale.batch),
        note=agreement(race.ours, race.other),
    )
