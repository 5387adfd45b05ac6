"""How long until the first token of one request, from file and text, through the pair?

Next: decode.py
"""

from benchmarks.row import Row, compared
from benchmarks.stage import Stage
from benchmarks.timeline import agreement


def first_token_1(stage: Stage) -> Row:
    """Our seconds over transformers'; the limit is the machine's matrix product alone."""
    race = stage.race(("pair", "transformers"), batch=1, new_tokens=1, rounds=stage.scale.short_rounds)
    return compared(
        "first_token_1",
        [run.first_token_s for run in race.ours],
        [run.first_token_s for run in race.other],
        target=1.0,
        unit="s",
        better="lower",
        limit=stage.costs.prefill_s(race.machine),
        note=agreement(race.ours, race.other),
    )
