"""How fast do decoded pixels become the rows that the vision tower multiplies?

Next: pool.py
"""

from collections.abc import Callable

from benchmarks.costs import Machine
from benchmarks.process import Contestant
from benchmarks.row import Row, compared
from benchmarks.stage import Stage

IMAGE_SIZES = ((512, 512), (1080, 1920))
VIDEO_SIZE = (64, 480, 640)
TARGET = 1.5
_ROUNDS_FACTOR = 3  # runs are short, so there are more rounds
_BYTES_A_VALUE = 1 + 4  # a colour value is read as one byte and written as four


def preprocess_image(stage: Stage) -> Row:
    """Pictures a second over transformers' processor: the worse of the two sizes, both in the note."""
    rows = [_image_row(stage, height, width) for height, width in IMAGE_SIZES]
    worst = min(rows, key=lambda row: row.ratio)
    note = ", ".join(f"{row.note} {row.ratio:.2f}" for row in rows)
    return Row(**{**vars(worst), "note": note})


def _image_row(stage: Stage, height: int, width: int) -> Row:
    return _row(
        stage,
        "preprocess_image",
        lambda side: side.call("image_s", height, width, 4 * stage.scale.repeats),
        note=f"{height}x{width}",
        unit="images/s",
        values=height * width * 3,
        count=1,
    )


def preprocess_video(stage: Stage) -> Row:
    """Decoded frames a second over transformers' video processor."""
    frames, height, width = VIDEO_SIZE
    return _row(
        stage,
        "preprocess_video",
        lambda side: side.call("video_s", frames, height, width, stage.scale.repeats),
        note=f"{frames} frames of {height}x{width}",
        unit="frames/s",
        values=frames * height * width * 3,
        count=frames,
    )


def _row(
    stage: Stage, name: str, seconds: Callable[[Contestant], float], *, note: str, unit: str, values: int, count: int
) -> Row:
    ours, other = stage.contestant("our pixels"), stage.contestant("transformers pixels")
    times = stage.in_turn(lambda _: seconds(ours), lambda _: seconds(other), _ROUNDS_FACTOR * stage.scale.short_rounds)
    return compared(
        name,
        [count / time for time in times[0]],
        [count / time for time in times[1]],
        target=TARGET,
        unit=unit,
        limit=count / _limit_s(values, times[2]),
        note=note,
    )


def _limit_s(values: int, machine: Machine) -> float:
    """Return the least seconds to read the pixels and write the rows once."""
    return values * _BYTES_A_VALUE / machine.read_bytes_s
