"""What a checkpoint's JSON files say beside the architecture: markers, stop ids, defaults of sampling, pixel budgets.

Next: worker/models/config.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from worker.models.base import GenerationDefaults, ModelInfo
from worker.models.checkpoint import CheckpointError, read_json
from worker.models.config import TextConfig, VisionConfig


@dataclass(frozen=True)
class ImageStatistics:
    """How pixels become the encoder's numbers: (x / 255 - mean) / std, channel by channel."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ProcessorLimits:
    """What the processor files allow of one modality.

    Args:
        max_pixels: pixel budget of an item (a clip's frames counted).
        statistics: of its pixels.
    """

    max_pixels: int
    statistics: ImageStatistics


@dataclass(frozen=True)
class MarkerIds:
    """Ids that stand for items in a prompt.

    Args:
        image: fills an image's ranges.
        video: fills a clip's ranges.
        vision_start: before a run of either.
        vision_end: after it.
        time_series: fills a series' ranges; None where the checkpoint takes none.
    """

    image: int
    video: int
    vision_start: int
    vision_end: int
    time_series: int | None = None


def describe(
    model_dir: Path,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    text: TextConfig,
    vision: VisionConfig | None,
    markers: MarkerIds,
) -> ModelInfo:
    """Return what a checkpoint says of itself; which modalities are served, the model knows.

    Args:
        model_dir: checkpoint directory.
        config: its config.json.
        dtype: of weights and activations.
        text: sizes of the language model.
        vision: sizes of the vision tower, whether or not it is loaded; None in a text-only checkpoint.
        markers: those of vision count where there is a vision tower.
    """
    info = ModelInfo(
        architecture=config["architectures"][0],
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=text.vocab_size,
        max_position_embeddings=text.max_position_embeddings,
        hidden_size=text.hidden_size,
        eos_token_ids=read_token_ids(model_dir, config, "eos"),
        generation=read_generation_defaults(model_dir),
        bos_token_id=read_token_id(model_dir, config, "bos"),
        pad_token_id=read_token_id(model_dir, config, "pad"),
        time_series_token_id=markers.time_series,
    )
    if vision is None:
        return info
    return replace(
        info,
        image_token_id=markers.image,
        video_token_id=markers.video,
        vision_start_token_id=markers.vision_start,
        vision_end_token_id=markers.vision_end,
        spatial_merge_size=vision.merge_size,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        in_channels=vision.in_channels,
        num_deepstack_layers=vision.num_deepstack_layers,
    )


def text_config_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's part of config.json: its `text_config`, or all of a text-only checkpoint's."""
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def vision_config_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the vision tower's part of config.json; None in a text-only checkpoint."""
    nested = config.get("vision_config")
    return nested if isinstance(nested, Mapping) else None


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether head and embedding are one matrix; the outer switch wins."""
    return bool(config.get("tie_word_embeddings", text_config_of(config).get("tie_word_embeddings", False)))


def read_token_ids(model_dir: Path, config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the ids of "eos", "bos" or "pad".

    They come from generation_config.json, else config.json's text config, else config.json, else the tokenizer; empty
    where none of them names one.
    """
    key = f"{name}_token_id"
    for source in (read_json(model_dir / "generation_config.json"), text_config_of(config), config):
        value = source.get(key)
        if isinstance(value, int):
            return (value,)
        if value:
            return tuple(int(token_id) for token_id in value)
    token = read_json(model_dir / "tokenizer_config.json").get(f"{name}_token")
    text = token.get("content") if isinstance(token, dict) else token
    token_id = added_token_ids(model_dir).get(text) if isinstance(text, str) else None
    return () if token_id is None else (token_id,)


def added_token_ids(model_dir: Path) -> dict[str, int]:
    """Return the tokenizer's added tokens by spelling: those of tokenizer_config.json, and of tokenizer.json."""
    decoder = read_json(model_dir / "tokenizer_config.json").get("added_tokens_decoder") or {}
    added = read_json(model_dir / "tokenizer.json").get("added_tokens") or []
    ids = {str(entry["content"]): int(token_id) for token_id, entry in decoder.items()}
    return ids | {str(entry["content"]): int(entry["id"]) for entry in added}


def read_token_id(model_dir: Path, config: Mapping[str, Any], name: str) -> int | None:
    """Return the first of `read_token_ids`, None where there is none."""
    return next(iter(read_token_ids(model_dir, config, name)), None)


def read_generation_defaults(model_dir: Path) -> GenerationDefaults:
    """Return the sampling defaults of generation_config.json; greedy where it asks for nothing."""
    content = read_json(model_dir / "generation_config.json")

    def number(key: str, default: float) -> float:
        value = content.get(key)
        return default if value is None else float(value)

    return GenerationDefaults(
        do_sample=bool(content.get("do_sample", False)),
        temperature=number("temperature", 1.0),
        top_p=number("top_p", 1.0),
        # transformers' own default of top-k is 50 wherever sampling is on and the file does not say otherwise
        top_k=int(number("top_k", 50 if content.get("do_sample") else 0)),
        repetition_penalty=number("repetition_penalty", 1.0),
    )


def read_processor_limits(
    model_dir: Path,
    modality: str,
    default_max_pixels: int,
    default_statistics: ImageStatistics = ImageStatistics(),
) -> ProcessorLimits:
    """Return what preprocessor_config.json or video_preprocessor_config.json says of a modality.

    Args:
        model_dir: checkpoint directory.
        modality: "image" or "video"; a clip falls back to the image's statistics.
        default_max_pixels: where no budget is written.
        default_statistics: where none are written.

    Raises:
        CheckpointError: a value has the wrong shape.
    """
    image = read_json(model_dir / "preprocessor_config.json")
    content = image if modality == "image" else read_json(model_dir / "video_preprocessor_config.json")
    size = content.get("size") or {}
    max_pixels = content.get("max_pixels") or size.get("longest_edge") or default_max_pixels
    mean = tuple(content.get("image_mean") or image.get("image_mean") or default_statistics.mean)
    std = tuple(content.get("image_std") or image.get("image_std") or default_statistics.std)
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise CheckpointError(f"{model_dir}: image_mean {mean} and image_std {std} do not fit")
    return ProcessorLimits(int(max_pixels), ImageStatistics(mean, std))
