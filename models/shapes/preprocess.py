"""Pictures, clips and messages to model inputs, by the rules of transformers 5.23's Qwen3VLProcessor.

A small stand-in for that processor, which needs torchvision: training and evaluation share it, so both see
what a server that follows the checkpoint's processor files would feed the model.

Next: models/shapes/questions.py
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase

CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass(frozen=True)
class Clip:
    """A clip already sampled: frames (num_frames, height, width, 3) uint8, times in seconds, one for each frame."""

    frames: np.ndarray
    times: tuple[float, ...]


@dataclass(frozen=True)
class Inputs:
    """One conversation as the model takes it.

    ids: (num_tokens,) prompt token ids, placeholders expanded.
    pixels, grids: image patches (num_patches, 1536) fp32 and [(t, h, w)] in patches; clip_* the same for clips.
    """

    ids: list[int]
    pixels: list[np.ndarray]
    grids: list[tuple[int, int, int]]
    clip_pixels: list[np.ndarray]
    clip_grids: list[tuple[int, int, int]]


def smart_resize(height: int, width: int, min_pixels: int, max_pixels: int, factor: int, num_frames: int = 1) -> tuple:
    """Target (height, width), multiples of `factor`, with num_frames * height * width inside the budget."""
    if num_frames > 1 and min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > 200:
        raise ValueError("the aspect ratio must be below 200")
    frames_bar = num_frames if num_frames == 1 else round(num_frames / 2) * 2
    height_bar, width_bar = round(height / factor) * factor, round(width / factor) * factor
    volume = num_frames * height * width
    if frames_bar * height_bar * width_bar > max_pixels:
        beta = math.sqrt(volume / max_pixels)
        height_bar = max(factor, math.floor(height / beta / factor) * factor)
        width_bar = max(factor, math.floor(width / beta / factor) * factor)
    elif frames_bar * height_bar * width_bar < min_pixels:
        beta = math.sqrt(min_pixels / volume)
        height_bar = math.ceil(height * beta / factor) * factor
        width_bar = math.ceil(width * beta / factor) * factor
    return height_bar, width_bar


def resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """(frames, h, w, 3) uint8 to (frames, height, width, 3) uint8: bicubic with antialias, on uint8 as torchvision."""
    if frames.shape[1:3] == (height, width):
        return frames
    x = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)
    x = torch.nn.functional.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return x.permute(0, 2, 3, 1).numpy()


def patchify(frames: np.ndarray, patch: int = 16, merge: int = 2) -> tuple[np.ndarray, tuple[int, int, int]]:
    """(frames, h, w, 3) uint8, an even number of frames, to patches (t*h*w, 1536) fp32 in block order, and the grid."""
    x = (frames.astype(np.float32) - 127.5) / 127.5
    num_frames, height, width, _ = x.shape
    t, h, w = num_frames // 2, height // patch, width // patch
    x = x.reshape(t, 2, h // merge, merge, patch, w // merge, merge, patch, 3)
    return x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1), (t, h, w)


def sample_indices(total: int, source_fps: float, fps: float, min_frames: int, max_frames: int) -> np.ndarray:
    """Indices of the frames that the Qwen3-VL rule takes from a clip of `total` frames."""
    count = min(max(int(total / source_fps * fps), min_frames), max_frames, total)
    return np.linspace(0, total - 1, count).round().astype(int)


def clip_text(times: tuple[float, ...], tokens_per_frame: int) -> str:
    """What `<|video_pad|>` becomes: for each pair of frames its mean time and its run of placeholders."""
    times = times + times[-1:] * (len(times) % 2)
    means = [(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]
    run = f"<|vision_start|>{'<|video_pad|>' * tokens_per_frame}<|vision_end|>"
    return "".join(f"<{mean:.1f} seconds>{run}" for mean in means)


class Processor:
    """Messages with pictures (PIL) and clips to Inputs, read from a checkpoint's own processor files."""

    def __init__(self, checkpoint: Path = CHECKPOINT) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint)
        self.image = json.loads((checkpoint / "preprocessor_config.json").read_text())
        self.video = json.loads((checkpoint / "video_preprocessor_config.json").read_text())

    def indices(self, total: int, source_fps: float) -> np.ndarray:
        """Frames to take from a clip of `total` frames at `source_fps`."""
        video = self.video
        return sample_indices(total, source_fps, video["fps"], video["min_frames"], video["max_frames"])

    def frames(self, frames: np.ndarray, config: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Resize and patchify one picture (one frame) or one sampled clip."""
        size, factor = config["size"], config["patch_size"] * config["merge_size"]
        height, width = frames.shape[1:3]
        target = smart_resize(height, width, size["shortest_edge"], size["longest_edge"], factor, len(frames))
        frames = resize(frames, *target)
        if len(frames) % 2:
            frames = np.concatenate([frames, frames[-1:]])
        return patchify(frames, config["patch_size"], config["merge_size"])

    def __call__(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> Inputs:
        """Render, expand the placeholders in order and tokenise; parts carry {"image": PIL} or {"video": Clip}."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        inputs = Inputs([], [], [], [], [])
        runs: list[str] = []
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image":
                    pixels, grid = self.frames(np.asarray(to_rgb(part["image"]))[None], self.image)
                    inputs.pixels.append(pixels)
                    inputs.grids.append(grid)
                    runs.append("<|image_pad|>" * (grid[1] * grid[2] // 4))
                elif part["type"] == "video":
                    pixels, grid = self.frames(part["video"].frames, self.video)
                    inputs.clip_pixels.append(pixels)
                    inputs.clip_grids.append(grid)
                    runs.append(clip_text(part["video"].times, grid[1] * grid[2] // 4))
        order = iter(runs)
        text = re.sub(r"<\|(image|video)_pad\|>", lambda _: next(order), text)
        inputs.ids.extend(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return inputs


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with alpha composited on white."""
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def collate(batch: list[Inputs], image_id: int, video_id: int) -> dict[str, torch.Tensor]:
    """Right-padded tensors for Qwen3VLForConditionalGeneration.

    Returns: input_ids, attention_mask, mm_token_type_ids (batch, max_tokens) int64; pixel_values (patches, 1536),
    image_grid_thw (images, 3), and the same for videos, each present where the batch has any.
    """
    longest = max(len(item.ids) for item in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(batch):
        ids[row, : len(item.ids)] = torch.tensor(item.ids)
        mask[row, : len(item.ids)] = 1
    types = (ids == image_id).long() + 2 * (ids == video_id).long()
    tensors = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
    for names, values, grids in (
        (("pixel_values", "image_grid_thw"), "pixels", "grids"),
        (("pixel_values_videos", "video_grid_thw"), "clip_pixels", "clip_grids"),
    ):
        patches = [value for item in batch for value in getattr(item, values)]
        if patches:
            tensors[names[0]] = torch.from_numpy(np.concatenate(patches))
            tensors[names[1]] = torch.tensor([grid for item in batch for grid in getattr(item, grids)])
    return tensors
