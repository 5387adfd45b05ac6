"""Reads what a checkpoint says to a processor: config.json, the media rules, the chat template.

Which file wins where several say the same is transformers' choice, so that both read a directory alike.

Next: registry.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessera.errors import FailedPrecondition
from tessera.items import ItemGeometry


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; empty where there is no file.

    Raises:
        FailedPrecondition: the file is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPrecondition(f"{path.name} is not JSON: {error}", reason="CHECKPOINT_INVALID") from error
    if not isinstance(content, dict):
        raise FailedPrecondition(f"{path.name} is not a JSON object.", reason="CHECKPOINT_INVALID")
    return content


def read_media_configs(model_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of the image and of the video processor.

    Source: transformers 5.23 `image_processing_base.py`, `video_processing_utils.py`: the nested entry of
    processor_config.json, else the file of that modality, else (video) the file of the images.

    Raises:
        FailedPrecondition: the checkpoint has none for images.
    """
    nested = read_json(model_dir / "processor_config.json")
    flat = read_json(model_dir / "preprocessor_config.json")
    image = nested.get("image_processor") or flat
    video = nested.get("video_processor") or read_json(model_dir / "video_preprocessor_config.json") or flat
    if not image:
        raise FailedPrecondition("The checkpoint has no preprocessor_config.json.", reason="CHECKPOINT_INCOMPLETE")
    return image, video or image


def read_chat_template(model_dir: Path) -> str | None:
    """Return the source of the default chat template, None where the checkpoint has none.

    Source: transformers 5.23 `processing_utils.py`: processor_config.json, chat_template.json, chat_template.jinja;
    then tokenizer_config.json.
    """
    raw = model_dir / "chat_template.jinja"
    candidates = (
        read_json(model_dir / "processor_config.json").get("chat_template"),
        read_json(model_dir / "chat_template.json").get("chat_template"),
        raw.read_text(encoding="utf-8") if raw.is_file() else None,
        read_json(model_dir / "tokenizer_config.json").get("chat_template"),
    )
    return next((source for entry in candidates if (source := _default_template(entry)) is not None), None)


def _default_template(entry: Any) -> str | None:
    """Pick "default" where a file lists several templates by name."""
    if isinstance(entry, list):
        entry = {template["name"]: template["template"] for template in entry}
    if isinstance(entry, dict):
        entry = entry.get("default")
    return entry if isinstance(entry, str) else None


def read_geometry(config: dict[str, Any]) -> ItemGeometry:
    """Return the sizes that a Qwen-like config.json gives its items.

    Raises:
        FailedPrecondition: a size is missing.
    """
    vision = config.get("vision_config", {})
    try:
        return ItemGeometry(
            patch_size=vision["patch_size"],
            merge_size=vision["spatial_merge_size"],
            temporal_patch_size=vision["temporal_patch_size"],
            hidden_size=vision["out_hidden_size"],
            num_deepstack_layers=len(vision.get("deepstack_visual_indexes") or ()),
        )
    except KeyError as error:
        raise FailedPrecondition(
            f"config.json lacks vision_config.{error.args[0]}.", reason="CHECKPOINT_INVALID"
        ) from error
