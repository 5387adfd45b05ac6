"""Draws what the other examples ask about: a picture of two shapes, and a clip of one that moves.

    python examples/pictures.py DIR      # writes picture.png and clip/frame00.png ...

Next: chat_image.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 128
BACKGROUND = (244, 244, 240)
RED, BLUE, GREEN = (220, 30, 30), (40, 70, 220), (30, 170, 50)


def picture() -> Image.Image:
    """Return a red circle on the left and a blue square on the right."""
    image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.ellipse((16, 46, 52, 82), fill=RED)
    draw.rectangle((76, 46, 112, 82), fill=BLUE)
    return image


def clip(frames: int = 8) -> list[Image.Image]:
    """Return the frames of a green square that moves left."""
    pictures = []
    for index in range(frames):
        image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
        left = round(88 - 80 * index / (frames - 1))
        ImageDraw.Draw(image).rectangle((left, 46, left + 34, 80), fill=GREEN)
        pictures.append(image)
    return pictures


def main() -> None:
    """Write both into the folder of the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    (folder / "clip").mkdir(parents=True, exist_ok=True)
    picture().save(folder / "picture.png")
    for index, frame in enumerate(clip()):
        frame.save(folder / "clip" / f"frame{index:02}.png")
    print(f"wrote {folder / 'picture.png'} and the frames of {folder / 'clip'}")


if __name__ == "__main__":
    main()
