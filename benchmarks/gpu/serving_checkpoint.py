"""The checkpoint that the pair and transformers both serve: a published shape, random weights, the embedded files.

Next: benchmarks/contestants/generate_gpu.py
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.checkpoint import IMAGE_PIXELS
from benchmarks.gpu.random_model import EMBEDDED, RandomWeights, config_of
from benchmarks.gpu.serving_plan import Model
from worker.models.qwen3_vl import Qwen3VL

_COPIED = (
    "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "video_preprocessor_config.json",
)  # fmt: skip


@torch.inference_mode()
def write_checkpoint(folder: Path, model: Model, device: str) -> None:
    """Write bf16 weights and all other files; takes memory for two copies, so run it in a process of its own.

    Args:
        folder: that exists.
        model: shape.
        device: where the weights are drawn.
    """
    for name in _COPIED:
        shutil.copyfile(EMBEDDED / name, folder / name)
    config = config_of(model)
    (folder / "config.json").write_text(json.dumps(config))
    _raise_budget(folder / "preprocessor_config.json")
    _fill_vocabulary(folder / "tokenizer.json", model.size.vocab)
    # What the loader asks for is what a checkpoint of this family holds, under the names that transformers gives it.
    tensors: dict[str, torch.Tensor] = {}
    Qwen3VL(folder, config, RandomWeights(torch.bfloat16, torch.device(device), tensors))  # type: ignore[arg-type]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _raise_budget(file: Path) -> None:
    """Let pictures be as large as the published checkpoints do."""
    content = json.loads(file.read_text())
    content["size"] = dict(zip(("shortest_edge", "longest_edge"), IMAGE_PIXELS, strict=True))
    file.write_text(json.dumps(content))


def _fill_vocabulary(file: Path, size: int) -> None:
    """Give every row of the embedding a text, since a random model draws them all; no merge leads to the new ones."""
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"Ġw{number}": number for number in range(len(vocabulary), size)}
    file.write_text(json.dumps(content))
