"""The main job in one command: start the pair on the embedded model, show it a picture and a clip, stream its answers.

Run it with `make demo`. What is drawn is left in build/demo, to be asked about again.

Next: client/tessera_client/sync_client.py, examples/README.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw
from rich.console import Console
from rich.text import Text

from tessera_client import Client, Image, Video

FOLDER = Path(__file__).resolve().parents[1] / "build" / "demo"
SIZE = (192, 128)
CLIP_FPS, CLIP_FRAMES = 8, 24
BACKGROUND = (244, 244, 240)
RED, BLUE, GREEN = (220, 30, 30), (40, 70, 220), (30, 170, 50)


def draw_scene() -> Picture.Image:
    """Return a picture of a red circle and a blue square."""
    picture = Picture.new("RGB", SIZE, BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((16, 32, 80, 96), fill=RED)
    draw.rectangle((112, 34, 172, 94), fill=BLUE)
    return picture


def draw_frames() -> list[Picture.Image]:
    """Return the frames of a green triangle that moves to the left."""
    frames = []
    for step in range(CLIP_FRAMES):
        x = 140 - 88 * step / (CLIP_FRAMES - 1)
        frame = Picture.new("RGB", SIZE, BACKGROUND)
        ImageDraw.Draw(frame).polygon([(x, 40), (x - 24, 86), (x + 24, 86)], fill=GREEN)
        frames.append(frame)
    return frames


def write_clip(path: Path, frames: Sequence[Picture.Image]) -> None:
    """Write frames as an MP4 file."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), CLIP_FPS, SIZE)
    for frame in frames:
        writer.write(cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2BGR))
    writer.release()


def as_text(pictures: Sequence[Picture.Image], columns: int = 30) -> Text:
    """Return pictures side by side as half-block characters: two pixels a character."""
    rows = columns * SIZE[1] // SIZE[0] // 2 * 2
    small = [picture.resize((columns, rows)) for picture in pictures]
    text = Text()
    for row in range(0, rows, 2):
        text.append("   ")
        for picture in small:
            for column in range(columns):
                upper, lower = picture.getpixel((column, row)), picture.getpixel((column, row + 1))
                text.append("▀", style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
            text.append("  ")
        text.append("\n")
    return text


@contextmanager
def pair() -> Iterator[str]:
    """Start a gateway and a worker, and return the gateway's address."""
    command = [sys.executable, "-m", "tessera_client", "serve", "--port", "0", "--json", "--log-dir", str(FOLDER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(process.wait() or 1)  # it has said why
            yield json.loads(line)["address"]
        finally:
            process.terminate()


def ask(client: Client, console: Console, *parts: Image | Video | str) -> None:
    """Ask one question and print the answer as it comes."""
    names = [Path(str(part.source)).name for part in parts if not isinstance(part, str)]
    console.print(f" [bold]{' + '.join(names)}[/]  {parts[-1]}")
    console.print("   → ", end="")
    with client.stream_chat(list(parts)) as stream:
        for delta in stream:
            console.print(delta.text, end="", style="green", highlight=False)
        usage = stream.result().usage
    console.print(f"   [dim]({usage.prompt_tokens} tokens in, {usage.completion_tokens} out)[/]\n")


def main() -> None:
    """Draw, start, ask three times, stop."""
    console = Console()
    FOLDER.mkdir(parents=True, exist_ok=True)
    scene, clip = FOLDER / "scene.png", FOLDER / "clip.mp4"
    picture, frames = draw_scene(), draw_frames()
    picture.save(scene)
    write_clip(clip, frames)
    console.print("\nStarting a gateway and a worker on the embedded model ...")
    with pair() as address, Client(address) as client:
        console.print(f"Serving at {address}.\n")
        if console.is_terminal:
            console.print(as_text([picture, frames[0], frames[-1]]))
            console.print("   [dim]the picture, and the clip's first and last frame[/]\n")
        ask(client, console, Image(scene), "What do you see?")
        ask(client, console, Video(clip), "What happens in the video?")
        ask(client, console, Image(scene), Video(clip), "Describe the image and the video.")
    console.print(f"Pictures and logs are in {FOLDER.relative_to(Path.cwd())}. Go on with `make serve`.\n")


if __name__ == "__main__":
    main()
