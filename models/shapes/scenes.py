"""Generated pictures and clips of coloured shapes, with what is in them.

Next: models/shapes/questions.py
"""

import io
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from preprocess import Clip, sample_indices

Rng = np.random.Generator
Color = tuple[int, int, int]

# Several centres a name, so that both the plain CSS colours and softer ones are learned.
COLORS: dict[str, list[Color]] = {
    "red": [(220, 30, 30), (255, 0, 0), (200, 20, 20)],
    "green": [(30, 170, 50), (0, 128, 0), (0, 200, 0), (0, 255, 0)],
    "blue": [(40, 70, 220), (0, 0, 255), (30, 60, 200)],
    "yellow": [(240, 215, 40), (255, 255, 0), (250, 220, 0)],
    "purple": [(140, 50, 170), (128, 0, 128), (150, 40, 190)],
    "orange": [(245, 140, 20), (255, 165, 0), (255, 128, 0)],
    "black": [(20, 20, 20), (0, 0, 0)],
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SIZES = ((256, 192), (320, 240), (256, 256), (192, 256), (128, 128), (128, 96), (96, 96), (64, 64), (512, 384))
CLIP_SIZES = ((256, 192), (128, 96), (160, 120), (128, 128), (192, 192), (96, 96), (320, 240), (240, 320), (64, 64))
SOURCE_FPS = (2, 5, 6, 8, 8, 10, 10, 12, 15, 24, 25, 30)


@dataclass(frozen=True)
class Thing:
    """One shape and its colour."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"{'an' if self.color == 'orange' else 'a'} {self.color} {self.shape}"


@dataclass(frozen=True)
class Picture:
    """A picture and its things, left to right."""

    image: Image.Image
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Motion:
    """A sampled clip of one thing that moves one way."""

    clip: Clip
    thing: Thing
    direction: str


def thing(rng: Rng) -> Thing:
    """Any colour with any shape."""
    return Thing(str(rng.choice(list(COLORS))), SHAPES[rng.integers(len(SHAPES))])


def paint(rng: Rng, name: str) -> Color:
    """A shade of the named colour: between two of its centres, with a small jitter."""
    centres = np.array(COLORS[name], dtype=float)
    one, two = centres[rng.integers(len(centres))], centres[rng.integers(len(centres))]
    mixed = one + (two - one) * rng.uniform() + rng.uniform(-10, 10, 3) * (rng.uniform() < 0.6)
    return tuple(int(v) for v in mixed.clip(0, 255))


def background(rng: Rng, width: int, height: int, colors: list[Color]) -> Image.Image:
    """White, light, graded or greyer; never near a colour that is drawn on it."""
    for _ in range(8):
        kind = rng.uniform()
        ends = np.full((2, 3), 255.0)
        if 0.3 < kind < 0.7:
            ends[:] = rng.integers(200, 256, 3)
        elif kind >= 0.7:
            low = 120 if kind > 0.85 else 190
            ends[:] = (rng.uniform(low, 255) + rng.uniform(-20, 20, 3)).clip(0, 255)
        if rng.uniform() < 0.15:
            ends[1] = (ends[0] + rng.uniform(-50, 50, 3)).clip(0, 255)
        if all(np.linalg.norm(end - color) > 105 for end in ends for color in np.array(colors, dtype=float)):
            break
    else:
        ends = np.full((2, 3), 255.0)
    if (ends[0] == ends[1]).all():
        return Image.new("RGB", (width, height), tuple(int(v) for v in ends[0]))
    ramp = np.linspace(0, 1, width)[None, :, None] if rng.uniform() < 0.5 else np.linspace(0, 1, height)[:, None, None]
    graded = ends[0] + (ends[1] - ends[0]) * np.broadcast_to(ramp, (height, width, 1))
    return Image.fromarray(graded.astype(np.uint8))


@dataclass(frozen=True)
class Style:
    """How one shape is drawn: proportions that people vary when they draw the same thing."""

    color: Color
    side: float
    base: float
    inner: float
    turn: float

    @classmethod
    def of(cls, rng: Rng, name: str) -> "Style":
        turn = rng.uniform(-0.08, 0.08) if rng.uniform() < 0.25 else 0.0
        return cls(paint(rng, name), rng.uniform(0.82, 1), rng.uniform(0.6, 1), rng.uniform(0.38, 0.5), turn)


def draw(canvas: ImageDraw.ImageDraw, shape: str, style: Style, x: float, y: float, r: float) -> None:
    """Fill one shape of radius r pixels centred at (x, y)."""
    if shape == "circle":
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=style.color)
        return
    if shape == "square":
        side = style.side
        points = [(-side, -side), (side, -side), (side, side), (-side, side)]
    elif shape == "triangle":
        points = [(0, -1), (-style.side, style.base), (style.side, style.base)]
    else:
        radii = [1.0, style.inner] * 5
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        points = [(q * math.cos(a), q * math.sin(a)) for q, a in zip(radii, angles, strict=True)]
    cos, sin = math.cos(style.turn), math.sin(style.turn)
    canvas.polygon([(x + r * (a * cos - b * sin), y + r * (a * sin + b * cos)) for a, b in points], fill=style.color)


def size_of(rng: Rng, common: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """(width, height) in pixels: mostly a common one, sometimes any with sides at most 2 to 1."""
    if rng.uniform() < 0.65:
        return common[rng.integers(len(common))]
    width = int(rng.integers(64, 417))
    return width, int(np.clip(width * rng.uniform(0.55, 1.8), 64, 416))


def places(rng: Rng, width: int, height: int, count: int) -> list[tuple[float, float, float]]:
    """(x, y, r) of `count` shapes, left to right, apart from one another."""
    gap = 0.03 * width
    most = min((width - (count + 1) * gap) / count, height * 0.94) / 2
    # A radius below some 8 pixels after the resize is not a shape any more.
    least = max(0.1 * min(width, height), 8.5 * max(1.0, math.sqrt(width * height) / 120))
    if rng.uniform() < 0.35:
        radii = np.full(count, rng.uniform(min(least, most), most))
    else:
        radii = rng.uniform(min(least, most), most, count)
    slack = rng.dirichlet(np.full(count + 1, 1.5)) * (width - 2 * radii.sum() - (count + 1) * gap)
    if rng.uniform() < 0.3:
        slack[:] = slack.mean()
    xs = np.cumsum(slack[:-1] + gap) + 2 * np.cumsum(radii) - radii
    if rng.uniform() < 0.35:
        ys = np.full(count, height / 2)
    else:
        ys = radii + 0.02 * height + rng.uniform(0, 1, count) * (0.96 * height - 2 * radii)
    return list(zip(xs, ys, radii, strict=True))


def spoil(rng: Rng, image: Image.Image, noise: float, quality: int) -> Image.Image:
    """Add normal noise of `noise` levels, and pass through JPEG where quality > 0."""
    if noise:
        noisy = np.asarray(image) + rng.normal(0, noise, (*image.size[::-1], 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if quality:
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=quality)
        image = Image.open(stored).convert("RGB")
    return image


def flaws(rng: Rng) -> tuple[float, int]:
    """Noise level and JPEG quality (0: none) of one picture or clip."""
    noise = rng.uniform(1, 7) if rng.uniform() < 0.12 else 0.0
    return noise, int(rng.integers(60, 96)) if rng.uniform() < 0.25 else 0


def picture(rng: Rng, count: int | None = None) -> Picture:
    """A picture of one to three things, in a row or scattered."""
    count = int(rng.choice(3, p=(0.15, 0.4, 0.45))) + 1 if count is None else count
    width, height = size_of(rng, SIZES)
    things = tuple(thing(rng) for _ in range(count))
    styles = [Style.of(rng, each.color) for each in things]
    image = background(rng, width, height, [style.color for style in styles])
    canvas = ImageDraw.Draw(image)
    for each, style, (x, y, r) in zip(things, styles, places(rng, width, height, count), strict=True):
        draw(canvas, each.shape, style, x, y, r)
    return Picture(spoil(rng, image, *flaws(rng)), things)


def path(rng: Rng, width: int, height: int, r: float, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """First and last centre (x, y) of a shape of radius r that crosses a good part of the frame."""
    room = np.array([width - 2 * r, height - 2 * r])
    axis = 0 if DIRECTIONS[direction][0] else 1
    length = rng.uniform(0.6, 1) * room[axis]
    start = rng.uniform(0, 1, 2) * room
    if rng.uniform() < 0.4:
        start[1 - axis] = room[1 - axis] / 2
    start[axis] = rng.uniform(0, room[axis] - length)
    end = start.copy()
    end[axis] += length
    return (start + r, end + r) if DIRECTIONS[direction][axis] > 0 else (end + r, start + r)


def through_mp4(frames: list[Image.Image], fps: float) -> list[np.ndarray]:
    """Write all frames with OpenCV's mp4v and read them back."""
    with tempfile.TemporaryDirectory() as folder:
        name = str(Path(folder) / "clip.mp4")
        writer = cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*"mp4v"), fps, frames[0].size)
        for frame in frames:
            writer.write(np.asarray(frame)[..., ::-1])
        writer.release()
        reader = cv2.VideoCapture(name)
        read = [reader.read()[1] for _ in frames]
        reader.release()
    return [np.ascontiguousarray(frame[..., ::-1]) for frame in read]


def motion(rng: Rng, mp4: float = 0.15, fps: float = 2, min_frames: int = 4, max_frames: int = 16) -> Motion:
    """A clip of one to six seconds (now and then longer), sampled by the Qwen3-VL rule."""
    moving, direction = thing(rng), str(rng.choice(list(DIRECTIONS)))
    width, height = size_of(rng, CLIP_SIZES)
    source_fps = float(SOURCE_FPS[rng.integers(len(SOURCE_FPS))])
    seconds = rng.uniform(1.5, 3.2) if rng.uniform() < 0.6 else rng.uniform(1, 6.2)
    if rng.uniform() < 0.03:
        seconds = rng.uniform(6, 20)
    total = max(4, round(source_fps * seconds))
    taken = sample_indices(total, source_fps, fps, min_frames, max_frames)
    style, r = Style.of(rng, moving.color), rng.uniform(0.12, 0.28) * min(width, height)
    field = background(rng, width, height, [style.color])
    first, last = path(rng, width, height, r, direction)
    coded = total <= 40 and rng.uniform() < mp4
    noise, quality = flaws(rng)
    frames = []
    for index in range(total) if coded else taken:
        frame = field.copy()
        draw(ImageDraw.Draw(frame), moving.shape, style, *(first + (last - first) * index / (total - 1)), r)
        frames.append(frame if coded else spoil(rng, frame, noise, quality))
    if coded:
        decoded = through_mp4(frames, source_fps)
        frames = [decoded[index] for index in taken]
    stack = np.stack([np.asarray(frame) for frame in frames])
    return Motion(Clip(stack, tuple(float(index) / source_fps for index in taken)), moving, direction)
