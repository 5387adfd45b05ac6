"""Items of what a caller's own Hugging Face processor returned: float patches, cut into one item for each medium.

    outputs = processor(text=[prompt], images=[cat], return_tensors="pt")
    items = items_from_processor(outputs)
    client.generate(outputs["input_ids"][0].tolist(), items=items)

The processor has expanded the prompt, and has marked which tokens stand for which modality (`mm_token_type_ids`):
from these the items get their ranges, and stand in prompt order. Without the marks they come without ranges, images
first, for a prompt with one placeholder each.

Next: requests.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from tessera_client.errors import InvalidArgument
from tessera_client.items import Item
from tessera_client.tensors import SIZES, Tensor

_KINDS = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
_TYPES = {1: "image", 2: "video"}  # of mm_token_type_ids; 0 is text


def items_from_processor(
    outputs: Mapping[str, Any],
    *,
    timestamps: Sequence[Sequence[float]] | None = None,
    merge_size: int = 2,
) -> list[Item]:
    """Return one item for each picture and clip of one prompt.

    Args:
        outputs: pixel_values (patches, channels * temporal * patch * patch), image_grid_thw (images, 3), the same of
            videos, and if they are there input_ids and mm_token_type_ids (1, tokens) and video_metadata; arrays as
            Tensor.from_array takes them, or lists of whole numbers.
        timestamps: of each clip, seconds of its sampled frames; None = of video_metadata.
        merge_size: patches along one token, as in the processor's configuration.

    Raises:
        InvalidArgument: PROCESSOR_OUTPUT: tensors, grids, ids and times do not agree; or see Tensor.from_array.
    """
    found = {kind: _cut(outputs, kind, *names) for kind, names in _KINDS.items()}
    times = _times(outputs, timestamps, len(found["video"]))
    found["video"] = [replace(item, timestamps=t) for item, t in zip(found["video"], times, strict=True)]
    if outputs.get("mm_token_type_ids") is None:
        return [*found["image"], *found["video"]]
    rows = _rows(outputs["mm_token_type_ids"], "mm_token_type_ids")
    if len(rows) != 1:
        raise _wrong(f"One prompt at a time: mm_token_type_ids has {len(rows)} rows.", "mm_token_type_ids")
    return _placed(rows[0], found, merge_size)


def _cut(outputs: Mapping[str, Any], kind: str, values_name: str, grid_name: str) -> list[Item]:
    """Cut the patches of a modality by the grids, which say how many rows each item has."""
    values, grids = outputs.get(values_name), outputs.get(grid_name)
    if values is None and grids is None:
        return []
    if values is None or grids is None:
        raise _wrong(f"{values_name} and {grid_name} come together.", values_name if values is None else grid_name)
    patches = Tensor.from_array(values)
    rows = [tuple(row) for row in _rows(grids, grid_name)]
    if len(patches.shape) != 2 or any(len(row) != 3 for row in rows):
        message = f"{values_name} has 2 dimensions and {grid_name} has 3 columns, not {list(patches.shape)} and {rows}."
        raise _wrong(message, values_name)
    counts = [math.prod(row) for row in rows]
    if sum(counts) != patches.shape[0] or min(counts, default=0) < 1:
        raise _wrong(f"{values_name} has {patches.shape[0]} rows; {grid_name} asks for {sum(counts)}.", values_name)
    width = patches.shape[1] * SIZES[patches.dtype]
    items, at = [], 0
    for (t, h, w), count in zip(rows, counts, strict=True):
        part = Tensor(patches.dtype, (count, patches.shape[1]), patches.data[at * width : (at + count) * width])
        items.append(Item(kind, "patches", part, grid_thw=(t, h, w)))
        at += count
    return items


def _placed(types: Sequence[int], found: Mapping[str, list[Item]], merge_size: int) -> list[Item]:
    """Give the items their ranges: runs of marked tokens, of which an image takes one and a clip one for each t."""
    waiting = {kind: list(items) for kind, items in found.items()}
    placed: list[Item] = []
    runs: list[tuple[int, int]] = []
    for kind, offset, length in _runs(types):
        while length:
            if not waiting[kind]:
                raise _wrong(f"More tokens are marked as {kind} than its items have.", "mm_token_type_ids")
            item = waiting[kind][0]
            assert item.grid_thw is not None
            t, h, w = item.grid_thw
            share = h * w // merge_size**2 * (1 if kind == "video" else t)
            if share < 1 or share > length:
                message = f"A run of {length} tokens at {offset} is too short for the next {kind}'s {share}."
                raise _wrong(message, "mm_token_type_ids")
            runs.append((offset, share))
            offset, length = offset + share, length - share
            if len(runs) == (t if kind == "video" else 1):
                placed.append(replace(waiting[kind].pop(0), ranges=tuple(runs)))
                runs = []
    left = [kind for kind, items in waiting.items() if items]
    if left or runs:
        raise _wrong(f"Fewer tokens are marked than the items have: {', '.join(left)}.", "mm_token_type_ids")
    return placed


def _runs(types: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    """Yield (modality, offset, length) of each run of equal marks."""
    offset = 0
    for mark, group in groupby(types):
        length = sum(1 for _ in group)
        if mark:
            if mark not in _TYPES:
                raise _wrong(f"Mark {mark} is of no modality that is known here.", "mm_token_type_ids")
            yield _TYPES[mark], offset, length
        offset += length


def _times(
    outputs: Mapping[str, Any], timestamps: Sequence[Sequence[float]] | None, clips: int
) -> list[tuple[float, ...]]:
    if timestamps is None:
        metadata = outputs.get("video_metadata")
        if metadata is None:
            return [()] * clips
        timestamps = [_metadata_times(one) for one in metadata]
    if len(timestamps) != clips:
        raise _wrong(f"{len(timestamps)} lists of times for {clips} clips.", "timestamps")
    return [tuple(float(time) for time in times) for times in timestamps]


def _metadata_times(metadata: Any) -> list[float]:
    """Return the seconds of the sampled frames: transformers' VideoMetadata, or the same as a dictionary."""
    get = metadata.get if isinstance(metadata, Mapping) else lambda name: getattr(metadata, name, None)
    indices, fps = get("frames_indices"), get("fps")
    if indices is None or not fps:
        raise _wrong("video_metadata lacks frames_indices or fps: give timestamps.", "video_metadata")
    return [float(index) / float(fps) for index in indices]


def _rows(values: Any, name: str) -> list[list[int]]:
    if not isinstance(values, list | tuple):
        values = Tensor.from_array(values).to_array().tolist()
    if not values or not all(isinstance(row, list | tuple) for row in values):
        raise _wrong(f"{name} has 2 dimensions.", name)
    return [[int(number) for number in row] for row in values]


def _wrong(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason="PROCESSOR_OUTPUT", field=field)
