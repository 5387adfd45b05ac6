"""What do gateway, gRPC and the worker's service cost beside the bare engine?

Next: preprocess.py
"""

from benchmarks.row import Row, compared
from benchmarks.stage import Stage
from benchmarks.timeline import agreement


def pair_over_engine(stage: Stage) -> Row:
    """Tokens a second of eight requests through both services, over the engine in one process on decoded pixels."""
    scale = stage.scale
    race = stage.race(("pair", "engine"), scale.batch, scale.new_tokens, scale.long_rounds)
    return compared(
        "pair_over_engine",
        [run.total_tokens_s for run in race.ours],
        [run.total_tokens_s for run in race.other],
        target=0.95,
        unit="tok/s",
        note=agreement(race.ours, race.other),
    )
