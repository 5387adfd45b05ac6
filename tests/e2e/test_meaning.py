"""What the embedded model says of pictures and clips that nobody has drawn before: the words must be right.

A wrong offset, a swapped modality or a wrong position shows as a wrong colour, order or direction. Scenes are plain:
well inside what models/shapes/scenes.py draws for training, but drawn here, anew, from seeds of their own.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import ROOT, Flags, Pair, Pairs
from tests.parity.cases import video_file

CHECKPOINT = ROOT / "models/shapes/checkpoint"
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 215, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 20),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUMBERS = {1: "one", 2: "two", 3: "three"}
SCENES = 10
ENOUGH = 9  # of ten: the model is small; its own table is models/shapes/EVAL.md
SIZE = (256, 192)


@dataclass(frozen=True)
class Thing:
    """A shape of a colour."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.shape}"


def things(seed: int, count: int) -> list[Thing]:
    """Things of different colours and different shapes."""
    rng = np.random.default_rng(seed)
    colors, shapes = rng.permutation(list(COLORS))[:count], rng.permutation(SHAPES)[:count]
    return [Thing(str(color), str(shape)) for color, shape in zip(colors, shapes, strict=True)]


def draw(canvas: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, r: float) -> None:
    """Fill one thing of radius r at (x, y)."""
    fill = COLORS[thing.color]
    if thing.shape == "circle":
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif thing.shape == "square":
        canvas.rectangle([x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r], fill=fill)
    elif thing.shape == "triangle":
        canvas.polygon([(x, y - r), (x - 0.9 * r, y + 0.8 * r), (x + 0.9 * r, y + 0.8 * r)], fill=fill)
    else:
        turns = [(i, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
        points = [(x + r * q * math.sin(math.pi * i / 5), y - r * q * math.cos(math.pi * i / 5)) for i, q in turns]
        canvas.polygon(points, fill=fill)


def drawing(shown: Sequence[Thing]) -> bytes:
    """A picture of things in a row, left to right, on white."""
    image = Image.new("RGB", SIZE, "white")
    width = SIZE[0] / len(shown)
    for index, thing in enumerate(shown):
        draw(ImageDraw.Draw(image), thing, width * (index + 0.5), SIZE[1] / 2, min(width * 0.4, SIZE[1] * 0.3))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def film(thing: Thing, direction: str, seconds: float = 2.0, fps: float = 8.0) -> bytes:
    """A clip of one thing that crosses the frame, as an MP4 file."""
    (dx, dy), radius = DIRECTIONS[direction], 34
    count = round(seconds * fps)
    frames = []
    for index in range(count):
        image = Image.new("RGB", SIZE, "white")
        way = index / (count - 1) - 0.5
        x = SIZE[0] / 2 + dx * way * (SIZE[0] - 2.4 * radius)
        y = SIZE[1] / 2 + dy * way * (SIZE[1] - 2.4 * radius)
        draw(ImageDraw.Draw(image), thing, x, y, radius)
        frames.append(np.asarray(image))
    return video_file(frames, fps, ".mp4", "mp4v")


def listed(shown: Sequence[Thing]) -> str:
    """`a red circle, a blue star and a green square`."""
    words = [str(thing) for thing in shown]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def picture_part(file: bytes) -> pb.Part:
    """A picture in a message."""
    return pb.Part(image=pb.ImagePart(media=pb.MediaSource(data=file)))


def clip_part(file: bytes) -> pb.Part:
    """A clip in a message."""
    return pb.Part(video=pb.VideoPart(media=pb.MediaSource(data=file)))


@pytest.fixture
def pair(pairs: Pairs) -> Pair:
    """The pair on the embedded model."""
    return pairs.get(Flags(CHECKPOINT))


def ask(pair: Pair, *parts: pb.Part | str, history: Sequence[pb.Message] = ()) -> str:
    """The streamed answer to a question."""
    content = [pb.Part(text=part) if isinstance(part, str) else part for part in parts]
    request = pb.ChatRequest(
        messages=[*history, pb.Message(role=pb.ROLE_USER, parts=content)],
        sampling=types.SamplingParams(temperature=0, max_tokens=64),
    )
    deltas = [delta for message in pair.stub.StreamChat(request, timeout=30) for delta in message.choices]
    assert deltas[-1].finish_reason == types.FINISH_REASON_STOP
    return "".join(delta.text for delta in deltas)


def right(rows: Iterator[tuple[Callable[[], str], str]]) -> tuple[int, list[str]]:
    """How many answers are the wanted ones, several asked at once; and those that are not."""
    asked = list(rows)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda row: row[0](), asked))
    wrong = [f"wanted {want!r}, said {got!r}" for (_, want), got in zip(asked, answers, strict=True) if want != got]
    assert len(asked) == SCENES
    return len(asked) - len(wrong), wrong


def test_one_thing(pair: Pair) -> None:
    """A picture of one thing is described by its colour and shape."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(seed, 1)
            yield lambda shown=shown: ask(pair, picture_part(drawing(shown)), "Describe the image."), f"{shown[0]}."

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_order_from_left_to_right(pair: Pair) -> None:
    """Two or three things are named in their order."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(100 + seed, 2 + seed % 2)
            question = "List the shapes from left to right."
            yield lambda shown=shown, q=question: ask(pair, picture_part(drawing(shown)), q), f"{listed(shown)}."

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_count(pair: Pair) -> None:
    """One to three things are counted."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(200 + seed, 1 + seed % 3)
            yield (
                lambda shown=shown: ask(pair, picture_part(drawing(shown)), "How many shapes are there?"),
                f"{NUMBERS[len(shown)]}.",
            )

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_shape_of_a_colour(pair: Pair) -> None:
    """Asked for one of two things by its colour, the model names that one's shape."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(300 + seed, 2)
            target = shown[seed % 2]
            question = f"What shape is {target.color}?"
            yield lambda shown=shown, q=question: ask(pair, picture_part(drawing(shown)), q), f"{target.shape}."

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_colour_of_the_shape(pair: Pair) -> None:
    """Asked for the colour of the shape that is there, the model names it."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(350 + seed, 1)
            question = f"What color is the {shown[0].shape}?"
            yield lambda shown=shown, q=question: ask(pair, picture_part(drawing(shown)), q), f"{shown[0].color}."

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_direction_of_motion(pair: Pair) -> None:
    """A clip is described by what moves and where it goes."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            thing, direction = things(400 + seed, 1)[0], list(DIRECTIONS)[seed % 4]
            yield (
                lambda t=thing, d=direction: ask(pair, clip_part(film(t, d)), "What happens in the video?"),
                f"{thing} moves {direction}.",
            )

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_two_pictures_in_their_order(pair: Pair) -> None:
    """Two pictures are described one after the other."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            one, two = things(500 + seed, 2)
            yield (
                lambda a=one, b=two: ask(
                    pair, picture_part(drawing([a])), picture_part(drawing([b])), "Describe both images."
                ),
                f"first {one}, then {two}.",
            )

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


@pytest.mark.parametrize("clip_first", [False, True], ids=["image_then_video", "video_then_image"])
def test_picture_and_clip_in_one_request(pair: Pair, clip_first: bool) -> None:
    """A picture and a clip in one request, in either order, are told apart and both described."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            still, moving = things(600 + seed, 2)
            direction = list(DIRECTIONS)[seed % 4]
            parts = [picture_part(drawing([still])), clip_part(film(moving, direction))]
            parts = parts[::-1] if clip_first else parts
            yield (
                lambda parts=parts: ask(pair, *parts, "Describe the image and the video."),
                f"the image shows {still}; in the video {moving} moves {direction}.",
            )

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


def test_questions_after_answers(pair: Pair) -> None:
    """A second question about the same picture is answered from the picture, not from the first answer."""

    def rows() -> Iterator[tuple[Callable[[], str], str]]:
        for seed in range(SCENES):
            shown = things(700 + seed, 2)
            history = [
                pb.Message(
                    role=pb.ROLE_USER, parts=[picture_part(drawing(shown)), pb.Part(text="Describe the image.")]
                ),
                pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text=f"{listed(shown)}.")]),
            ]
            if seed % 2:
                question, want = f"What shape is {shown[1].color}?", f"{shown[1].shape}."
            else:
                question, want = "What is on the right?", f"{shown[1]}."
            yield lambda history=history, question=question: ask(pair, question, history=history), want

    count, wrong = right(rows())
    assert count >= ENOUGH, wrong


@pytest.mark.parametrize("question", ["Describe the image.", "What do you see?", "What happens in the video?"])
def test_without_a_picture(pair: Pair, question: str) -> None:
    """Asked about a picture that is not there, the model says that it sees none."""
    assert ask(pair, question) == "I see no picture."


def test_words_come_while_they_are_made(pair: Pair) -> None:
    """The answer arrives in pieces, before its end."""
    request = pb.ChatRequest(
        messages=[
            pb.Message(
                role=pb.ROLE_USER,
                parts=[
                    picture_part(drawing(things(1, 1))),
                    clip_part(film(things(2, 1)[0], "left")),
                    pb.Part(text="Describe the image and the video."),
                ],
            )
        ],
        sampling=types.SamplingParams(temperature=0),
    )
    messages = list(pair.stub.StreamChat(request, timeout=30))
    assert len(messages) > 3
    assert [report.modality for report in messages[0].media] == [types.MODALITY_IMAGE, types.MODALITY_VIDEO]


def test_the_model_says_what_it_is(pair: Pair) -> None:
    """GetModel describes the embedded model as one that takes pictures and clips."""
    model = pair.model()
    assert model.architecture == "Qwen3VLForConditionalGeneration"
    assert list(model.modalities) == [types.MODALITY_IMAGE, types.MODALITY_VIDEO]
    assert model.state == pb.MODEL_STATE_READY


def test_weights_are_small(pair: Pair) -> None:
    """The weights in the repository stay under 30 MB."""
    weights = sum(file.stat().st_size for file in Path(CHECKPOINT).glob("*.safetensors"))
    assert weights < 30 << 20
