"""Do two pool processes halve the time that one request's pictures take?

Next: load_memory.py
"""

from benchmarks.row import Row, compared
from benchmarks.stage import Stage

PICTURES = 8
SIZE = (1080, 1920)
_LIMIT = 2.0  # two processes cannot do more than twice the work of one


def preprocess_8_images(stage: Stage) -> Row:
    """Pictures a second of one request of eight, two processes over one: decoded, resized, hashed, handed back."""
    target = "benchmarks.contestants.media_pool:Pool"
    two, one = (stage.start(target, stage.model_dir, workers) for workers in (2, 1))
    for pool in (two, one):
        pool.call("request_s", 0, 2, *SIZE)  # warms up
    ours, other, _ = stage.in_turn(
        lambda number: two.call("request_s", number * PICTURES, PICTURES, *SIZE),
        lambda number: one.call("request_s", number * PICTURES, PICTURES, *SIZE),
        stage.scale.short_rounds,
    )
    for pool in (two, one):
        pool.close()
    row = compared(
        "preprocess_8_images",
        [PICTURES / seconds for seconds in ours],
        [PICTURES / seconds for seconds in other],
        target=1.6,
        unit="images/s",
        note=f"{SIZE[0]}x{SIZE[1]} PNG",
    )
    return Row(**{**vars(row), "limit": _LIMIT * row.other})
