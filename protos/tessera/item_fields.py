"""The plain fields of a MultimodalItem message, each with its bounds.

Next: items.py.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from tessera.errors import InvalidArgument, Unimplemented
from tessera.modality import Modality
from tessera.time_series import MAX_CHANNELS
from tessera.v1 import types_pb2 as pb

MAX_GRID = 1 << 20  # patches along one axis; far above any legal item, far below overflow


def read_modality(message: pb.MultimodalItem) -> Modality:
    """Return what an item is.

    Raises:
        InvalidArgument: it does not say; field "modality".
        Unimplemented: audio.
    """
    try:
        modality = Modality.from_proto(message.modality)
    except ValueError:
        raise InvalidArgument("An item names its modality.", reason="FIELD_REQUIRED", field="modality") from None
    if modality is Modality.AUDIO:
        raise Unimplemented("Audio is not served yet.", reason="MODALITY_UNSUPPORTED", field="modality")
    return modality


def read_grid(message: pb.MultimodalItem) -> tuple[int, int, int] | None:
    """Return (t, h, w), or None where the item has no grid.

    Raises:
        InvalidArgument: a side is out of range; field "grid_thw".
    """
    if not message.HasField("grid_thw"):
        return None
    grid = (message.grid_thw.t, message.grid_thw.h, message.grid_thw.w)
    if not all(1 <= side <= MAX_GRID for side in grid):
        raise InvalidArgument(
            f"Each side of a grid is in [1, {MAX_GRID}]; got {list(grid)}.", reason="GRID_INVALID", field="grid_thw"
        )
    return grid


def read_timestamps(message: pb.MultimodalItem) -> tuple[float, ...]:
    """Return the times of the frames, in seconds.

    Raises:
        InvalidArgument: they are not finite, ascending and at least 0; field "timestamps".
    """
    times = tuple(message.timestamps)
    if not np.isfinite(times).all() or any(b < a for a, b in pairwise(times)):
        raise InvalidArgument("Timestamps are finite and ascending.", reason="TIMESTAMPS_INVALID", field="timestamps")
    if times and times[0] < 0:
        raise InvalidArgument("Timestamps are not negative.", reason="TIMESTAMPS_INVALID", field="timestamps[0]")
    return times


def read_rate(message: pb.MultimodalItem) -> float:
    """Return samples a second; 0 = unknown.

    Raises:
        InvalidArgument: it is negative or not finite; field "sampling_rate_hz".
    """
    rate = message.sampling_rate_hz
    if not math.isfinite(rate) or rate < 0:
        raise InvalidArgument(
            "A sampling rate is finite and not negative.", reason="SAMPLING_RATE", field="sampling_rate_hz"
        )
    return rate


def read_channels(message: pb.MultimodalItem) -> int:
    """Return the channels that the item says it has; 0 = it does not say.

    Raises:
        InvalidArgument: out of range; field "channels".
    """
    if not 0 <= message.channels <= MAX_CHANNELS:
        raise InvalidArgument(
            f"A series has 1 to {MAX_CHANNELS} channels, not {message.channels}.",
            reason="SERIES_CHANNELS",
            field="channels",
        )
    return message.channels


def check_fields(modality: Modality, message: pb.MultimodalItem) -> None:
    """Refuse a series' fields on a picture or clip: the rate would stand in the hash, the channels be ignored.

    Raises:
        InvalidArgument: naming the first of them.
    """
    if modality is Modality.TIME_SERIES:
        return
    for name in ("sampling_rate_hz", "channels"):
        if getattr(message, name):
            raise InvalidArgument(f"An item of modality {modality} has no {name}.", reason="FIELD_FOREIGN", field=name)
