"""Positions from segments on CUDA and in torch, against those of whole prompts.

Next: kernels/csrc/mrope_positions.cu
"""

from typing import NamedTuple

import pytest
import torch

from tessera.items import PlaceholderRange
from tessera_kernels import cuda, ops, reference_multimodal
from tests.cuda_ops import Target, check_op
from tests.positions import positions_of
from worker.layers.positions import Item, mrope_segments

MERGE = 2
Segment = tuple[int, int, int, int, int, int]


class Chunk(NamedTuple):
    """Tokens [start, end) of a sequence: of its prompt, or, behind that, generated ones."""

    prompt_len: int
    items: list[Item]
    start: int
    end: int


def image(offset: int, height: int, width: int) -> Item:
    """An image of height x width tokens."""
    return ("image", [PlaceholderRange(offset, height * width)], (1, MERGE * height, MERGE * width))


def clip(first: int, height: int, width: int, *offsets: int) -> Item:
    """A clip whose frames are runs of their own."""
    ranges = [PlaceholderRange(offset, height * width) for offset in (first, *offsets)]
    return ("video", ranges, (len(ranges), MERGE * height, MERGE * width))


def segments_of(chunk: Chunk) -> list[Segment]:
    """All segments of a sequence, their targets counted from the prompt's first token."""
    segments, cursor, base = [], 0, 0
    for _, ranges, grid in chunk.items:
        assert grid is not None
        height, width = grid[1] // MERGE, grid[2] // MERGE
        for span in ranges:
            segments.append((cursor, span.offset - cursor, base, 0, 0, 0))
            base += span.offset - cursor
            segments.append((span.offset, span.length, base, height, width, 0))
            cursor, base = span.offset + span.length, base + max(height, width)
    delta = base - cursor  # of the text behind the last item, prompt or generated
    return [*segments, (cursor, max(chunk.end - cursor, 0), cursor + delta, 0, 0, 0)]


def cut(segment: Segment, start: int, end: int, row: int) -> Segment:
    """What lies in [start, end), at row `row` of the step."""
    target, count, base, height, width, _ = segment
    first, last = max(target, start), min(target + count, end)
    return (row + first - start, last - first, base, height, width, first - target)


def step(chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the segments of a step, and its positions by the whole prompts."""
    segments, expected, row = [], [torch.zeros(3, 0, dtype=torch.int64)], 0
    for chunk in chunks:
        pieces = [cut(segment, chunk.start, chunk.end, row) for segment in segments_of(chunk)]
        segments += [piece for piece in pieces if piece[1] > 0]
        whole, following = mrope_segments(chunk.prompt_len, chunk.items, MERGE)
        prompt = positions_of(whole, chunk.prompt_len)
        generated = torch.arange(following, following + max(chunk.end - chunk.prompt_len, 0)).expand(3, -1)
        expected.append(torch.cat((torch.from_numpy(prompt), generated), dim=1)[:, chunk.start : chunk.end])
        row += chunk.end - chunk.start
    return torch.tensor(segments, dtype=torch.int64).view(-1, 6), torch.cat(expected, dim=1)


def check(target: Target, segments: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare the op and its reference."""
    tokens = expected.shape[1]
    assert torch.equal(ops.mrope_positions(target.guarded(segments), tokens).cpu(), expected)
    assert torch.equal(reference_multimodal.mrope_positions(segments, tokens), expected)


TWO_IMAGES = [image(3, 2, 3), image(12, 4, 1)]
STEPS = {
    "decode only": [Chunk(5, [], 7, 8), Chunk(3, [], 3, 4)],
    "decode with delta": [Chunk(10, [image(2, 2, 3)], 14, 15), Chunk(7, [image(1, 1, 5)], 7, 8)],
    "text only": [Chunk(9, [], 0, 9)],
    "image in the middle": [Chunk(12, [image(3, 2, 3)], 0, 12)],
    "text, image, text, image, text": [Chunk(20, TWO_IMAGES, 0, 20)],
    "second chunk cuts an image": [Chunk(20, TWO_IMAGES, 5, 20)],
    "images cut at both ends": [Chunk(20, TWO_IMAGES, 7, 14)],
    "inside one image": [Chunk(20, TWO_IMAGES, 4, 7)],
    "behind the image": [Chunk(20, [image(3, 2, 3)], 11, 20)],
    "image at the start": [Chunk(9, [image(0, 2, 3)], 0, 9)],
    "image at the end": [Chunk(9, [image(3, 3, 2)], 0, 9)],
    "images side by side": [Chunk(14, [image(1, 2, 3), image(7, 1, 4)], 0, 14)],
    "clip in runs": [Chunk(30, [clip(2, 2, 3, 10, 18)], 0, 30)],
    "cut clip, runs side by side": [Chunk(30, [clip(2, 2, 3, 8, 14)], 5, 17)],
    "mixed": [
        Chunk(20, TWO_IMAGES, 24, 25), Chunk(9, [], 0, 9), Chunk(20, TWO_IMAGES, 6, 15), Chunk(5, [], 5, 6),
        Chunk(12, [image(3, 2, 3)], 0, 12),
    ],
    "long": [Chunk(1000, [image(5, 16, 24), image(500, 10, 12)], 100, 900), Chunk(3, [], 3, 4)],
    "empty": [],
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_positions_of_a_step(target: Target, name: str) -> None:
    """Every token stands where its whole prompt puts it, however the step cuts and mixes prompts."""
    check(target, *step(STEPS[name]))


def test_a_clip_as_one_segment_moves_on_in_time(target: Target) -> None:
    """Where a family places a clip as one grid, each frame is one further in time and starts over in the others."""
    segments = torch.tensor([[0, 1, 0, 0, 0, 0], [1, 8, 1, 2, 2, 0], [9, 1, 3, 0, 0, 0]])
    expected = torch.tensor(
        [[0, 1, 1, 1, 1, 2, 2, 2, 2, 3], [0, 1, 1, 2, 2, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 1, 2, 1, 2, 3]]
    )
    check(target, segments, expected)
    segments = torch.tensor([[0, 6, 1, 2, 2, 3], [6, 1, 3, 0, 0, 0]])  # cut inside its first frame
    check(target, segments[:, :], torch.cat((expected[:, 4:9], torch.tensor([[3], [1], [1]]), expected[:, 9:]), dim=1))


def test_segments_may_leave_the_step(target: Target) -> None:
    """What lies before the step's first token or behind its last is left out, as if it had been cut."""
    (chunk,) = STEPS["images cut at both ends"]
    whole = [(at - chunk.start, *rest) for at, *rest in segments_of(chunk)]
    check(target, torch.tensor(whole), step([chunk])[1])


def test_tokens_of_no_segment(target: Target) -> None:
    """Padding stands at zero; segments without tokens are passed over."""
    segments = torch.tensor([[1, 2, 7, 0, 0, 0], [3, 0, 9, 0, 0, 0], [5, 1, 4, 0, 0, 2], [8, 0, 0, 0, 0, 0]])
    check(target, segments, torch.tensor([0, 7, 8, 0, 0, 6, 0, 0]).expand(3, -1))


def test_bad_arguments_are_refused(target: Target) -> None:
    """A wrong shape or type is an error that names the argument, not a wrong result."""
    segments = target.guarded(torch.zeros(2, 6, dtype=torch.int64))
    for match, arguments in {
        "segments has another shape": (segments[:, :5].contiguous(), 3),
        "segments has another dtype": (segments.int(), 3),
        "segments must be contiguous": (segments.expand(2, 2, 6)[:, 0], 3),
        "tokens is out of range": (segments, -1),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            cuda.ops().mrope_positions(*arguments)


def test_op_traces(target: Target) -> None:
    """Schema, fake and tracing hold up to torch's own checks."""
    with torch.inference_mode(False):
        check_op(target.ops.mrope_positions, (torch.zeros(2, 6, dtype=torch.int64, device=target.device), 5))
