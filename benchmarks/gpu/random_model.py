"""Qwen3-VL of any shape with random weights, made on the device by the worker's own loading code.

Next: benchmarks/gpu/decode_step.py
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.serving_plan import Model
from worker.models.base import CausalLM
from worker.models.qwen3_vl import Qwen3VL

EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "shapes" / "checkpoint"
"""The repository's own small checkpoint, of the same family: its files stand in for a published one's."""


class RandomWeights:
    """A checkpoint that has every tensor that it is asked for, as large as makes each layer's output of order one.

    Args:
        dtype: storage type of the model.
        device: of the model; the numbers are drawn there.
        kept: where tensors are kept by name, on the CPU; None keeps none.
        prefix: of the names.
        generator: of the numbers.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        kept: dict[str, torch.Tensor] | None = None,
        prefix: str = "",
        generator: torch.Generator | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self._kept = kept
        self._prefix = prefix
        self._generator = generator or torch.Generator(device).manual_seed(0)

    def under(self, prefix: str) -> "RandomWeights":
        """Return the source of the names below `prefix`."""
        return RandomWeights(self.dtype, self.device, self._kept, f"{self._prefix}{prefix}.", self._generator)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return that nothing is stored in another form."""
        return None

    def mapped(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Draw a tensor: ones for scales, zeros for biases, else normal numbers over the root of a row's length."""
        if len(shape) == 1:
            tensor = torch.full(shape, float(not name.endswith("bias")), dtype=self.dtype, device=self.device)
        else:
            tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
            tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=self._generator)
        if self._kept is None:
            return tensor
        return self._kept.setdefault(self._prefix + name, tensor.cpu())

    def slices(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """Draw a stack of matrices one by one."""
        return iter(self.mapped(name, shape))

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        """Draw a tensor in the type that is asked for."""
        return self.mapped(name, shape).to(self.device, dtype or self.dtype, copy=True)

    def skip(self, prefix: str) -> None:
        """Leave names undrawn, as all are that nobody asks for."""


def config_of(model: Model) -> dict[str, Any]:
    """Return config.json of a shape."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    vision = {name: value for name, value in config["vision_config"].items() if name != "rope_parameters"}
    tied = {"tie_word_embeddings": model.tied}
    return config | tied | {
        "text_config": config["text_config"] | tied | model.size.text_config,
        "vision_config": vision | model.size.vision_config,
    }  # fmt: skip


@torch.inference_mode()
def make_language_model(model: Model, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """Return the language model of a shape, without its vision tower; nothing is written to disk."""
    weights = RandomWeights(dtype, device)
    with tempfile.TemporaryDirectory(prefix="tessera-shape-") as empty:
        return Qwen3VL(Path(empty), config_of(model), weights, disable_vision_encoder=True)  # type: ignore[arg-type]
