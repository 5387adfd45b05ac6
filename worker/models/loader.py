"""From a checkpoint directory to a model that is ready to run.

Next: worker/models/multimodal_lm.py
"""

from pathlib import Path
from typing import Any

import torch

from worker.models.base import CausalLM
from worker.models.checkpoint import Checkpoint, CheckpointError, Progress, read_json
from worker.models.encoder import ItemEncoder
from worker.models.info import vision_config_of
from worker.models.multimodal_lm import MultimodalLM
from worker.models.registry import REGISTRY, Registry

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    model_dir: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    disable_vision_encoder: bool = False,
    progress: Progress | None = None,
    registry: Registry = REGISTRY,
) -> CausalLM:
    """Read a checkpoint, tensor by tensor, straight into the form that the engine keeps.

    Args:
        model_dir: local directory in the Hugging Face layout.
        dtype: "float32", "bfloat16" or the torch types; None: the checkpoint's on an accelerator, fp32 on the CPU
            (whose bf16 products are slower than its fp32 ones).
        device: where to run.
        disable_vision_encoder: leave the vision weights unread; `encode` then refuses.
        progress: told the share read so far.
        registry: architectures to choose from.

    Raises:
        CheckpointError: naming the file, key or field at fault; an unknown architecture is found before any weight.
            Also where there is no vision encoder to disable.
    """
    config, model_class, checkpoint = _open(model_dir, dtype, device, progress, registry)
    if disable_vision_encoder and vision_config_of(config) is None:
        raise CheckpointError(
            f"{config['architectures'][0]} has no vision encoder to disable: drop --disable-vision-encoder"
        )
    with torch.inference_mode():
        model = model_class(Path(model_dir), config, checkpoint, disable_vision_encoder=disable_vision_encoder)
    checkpoint.finish()
    return model


def load_encoders(
    model_dir: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    registry: Registry = REGISTRY,
) -> tuple[ItemEncoder, ...]:
    """Read the encoders of a checkpoint and nothing else, as a worker that only encodes does.

    Args:
        model_dir: local directory in the Hugging Face layout.
        dtype: see `load_model`.
        device: where to run.
        registry: architectures to choose from.

    Returns:
        One encoder for each group of modalities, runnable by itself; none of a text-only checkpoint.

    Raises:
        CheckpointError: naming the file, key or field at fault.
    """
    config, model_class, checkpoint = _open(model_dir, dtype, device, None, registry)
    with torch.inference_mode():
        encoders = model_class.load_encoders(Path(model_dir), config, checkpoint)
    checkpoint.close()
    return encoders


def _open(
    model_dir: str | Path,
    dtype: torch.dtype | str | None,
    device: torch.device | str,
    progress: Progress | None,
    registry: Registry,
) -> tuple[dict[str, Any], type[MultimodalLM], Checkpoint]:
    model_dir, device = Path(model_dir), torch.device(device)
    config = read_json(model_dir / "config.json")
    if not config:
        raise CheckpointError(f"{model_dir / 'config.json'} is missing or empty")
    _, model_class = registry.resolve(config.get("architectures") or ())
    return config, model_class, Checkpoint(model_dir, resolve_dtype(dtype, config, device), device, progress)


def resolve_dtype(dtype: torch.dtype | str | None, config: dict, device: torch.device) -> torch.dtype:
    """Return the storage type: what was asked for, else by checkpoint and device.

    Raises:
        CheckpointError: another type than fp32 and bf16.
    """
    if dtype is None:
        written = (config.get("text_config") or {}).get("dtype") or config.get("dtype") or config.get("torch_dtype")
        dtype = "float32" if device.type == "cpu" or written == "float32" else "bfloat16"
    resolved = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved not in _DTYPES.values():
        raise CheckpointError(f"dtype {dtype} is not served; served are {', '.join(_DTYPES)}")
    assert resolved is not None
    return resolved
