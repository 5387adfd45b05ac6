"""The files that docs/multimodal-inputs.md names, drawn anew: pictures, clips, series and what encoders make of them.

Next: tests/e2e/test_docs.py
"""

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from examples.pictures import clip, picture
from tessera_client import Item, save_embeddings
from tests.parity.cases import video_file

CLIP_FPS = 4.0
USED_FRAMES = (0, 2, 5, 7)  # of eight, by Qwen's rule
SERVERS_FILES = ("picture.png", "clip.mp4", "series.csv")


@dataclass(frozen=True)
class Models:
    """Checkpoints: of the model that sees, and of the one that also takes series."""

    shapes: Path
    series: Path


def write_files(folder: Path, models: Models) -> None:
    """Write every file that the page names into a folder."""
    (folder / "models/shapes").mkdir(parents=True)
    (folder / "models/shapes/checkpoint").symlink_to(models.shapes)
    for name in ("media", "frames"):
        (folder / name).mkdir()
    for index, frame in enumerate(clip()):
        frame.save(folder / "frames" / f"{index}.png")
    picture().save(folder / "picture.png")
    frames = [np.asarray(frame) for frame in clip()]
    (folder / "clip.mp4").write_bytes(video_file(frames, CLIP_FPS, ".mp4", "mp4v"))
    _write_series(folder)
    for name in SERVERS_FILES:
        (folder / "media" / name).write_bytes((folder / name).read_bytes())
    _write_embeddings(folder, models)


def _write_series(folder: Path) -> None:
    seconds = np.arange(1000) / 100
    series = np.stack([np.sin(seconds), np.cos(3 * seconds)], 1).astype(np.float32)
    np.save(folder / "series.npy", series)
    np.savetxt(folder / "series.csv", series, fmt="%.5f", delimiter=",", header="x,y", comments="")
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(16_000) / 9)).astype("<i2").tobytes())


def _write_embeddings(folder: Path, models: Models) -> None:
    still = np.asarray(Image.open(folder / "picture.png"))[None]
    moving = np.stack([np.asarray(Image.open(folder / f"frames/{index}.png")) for index in USED_FRAMES])
    times = tuple(index / CLIP_FPS for index in USED_FRAMES)
    items = {
        "picture": (models.shapes, Item("image", "pixels_u8", still, grid_thw=(1, 8, 8))),
        "clip": (models.shapes, Item("video", "pixels_u8", moving, grid_thw=(2, 8, 8), timestamps=times)),
        "series": (models.series, Item("time_series", "samples", np.load(folder / "series.npy"), sampling_rate_hz=100)),
    }
    for name, (model, item) in items.items():
        encoded = _encode(model, item)
        save_embeddings(folder / f"{name}.safetensors", encoded)
        np.save(folder / f"{name}_embeddings.npy", encoded.array)
        for side, array in encoded.side_arrays.items():
            np.save(folder / f"{name}_{side}.npy", array)


def _encode(model: Path, item: Item) -> Item:
    import torch

    from worker.models.base import EncoderInput
    from worker.models.loader import load_encoders

    encoder = next(encoder for encoder in load_encoders(model) if item.modality in encoder.modalities)
    assert item.payload_kind is not None
    given = EncoderInput(
        item.modality,
        item.payload_kind,
        torch.from_numpy(np.array(item.array)),
        item.grid_thw,
        sampling_rate_hz=item.sampling_rate_hz,
    )
    [output] = encoder([given])
    sides = {} if output.deepstack is None else {"deepstack": output.deepstack.numpy()}
    return Item(
        item.modality,
        "embeddings",
        output.embeddings.numpy(),
        grid_thw=item.grid_thw,
        timestamps=item.timestamps,
        side_arrays=sides,
    )
