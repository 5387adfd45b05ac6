"""FP8 checkpoints: plain linears, every kind of scale, blocks of any size, and errors that name what is wrong.

Next: tests/unit/worker/models/test_names.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.worker.models import checkpoints, quantise
from tests.unit.worker.models.test_loader import logits
from worker.models.checkpoint import Checkpoint, CheckpointError
from worker.models.loader import load_model

NAME = "model.language_model.layers.0.mlp.up_proj.weight"
FP8: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}


def matrix(rows: int = 150, columns: int = 300) -> torch.Tensor:
    """A random matrix whose blocks differ in size."""
    spread = torch.linspace(0.1, 10, columns)
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * spread


def open_checkpoint(path: Path, tensors: dict[str, torch.Tensor], quantization: Any = FP8) -> Checkpoint:
    """Write a file and its config and open them."""
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return Checkpoint(path, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["fp32", "bf16", "e8m0", "e8m0 bytes"])
def test_scales(tmp_path: Path, kind: str) -> None:
    """Scales in fp32, bf16 and ue8m0, typed or as bytes, multiply the numbers exactly."""
    numbers, scales, product = quantise.blocks(matrix(), (128, 128), ue8m0=kind != "fp32")
    stored = {
        "fp32": scales,
        "bf16": scales.bfloat16(),
        "e8m0": scales.to(torch.float8_e8m0fnu),
        "e8m0 bytes": scales.to(torch.float8_e8m0fnu).view(torch.uint8),
    }[kind]
    checkpoint = open_checkpoint(tmp_path, {NAME: numbers, f"{NAME}_scale_inv": stored})
    assert torch.equal(checkpoint.mapped(NAME, (150, 300)), product)
    checkpoint.finish()


@pytest.mark.parametrize(
    ("block", "config"),
    [
        ((128, 128), FP8),
        ((16, 32), FP8 | {"weight_block_size": [16, 32]}),
        ((50, 100), FP8),  # told by nothing but the scales, which divide the matrix evenly
        ((150, 300), FP8 | {"weight_block_size": None}),
    ],
)
def test_blocks(tmp_path: Path, block: tuple[int, int], config: dict[str, Any]) -> None:
    """The block is that of the config, 128 x 128 without one, or what the number of scales says."""
    numbers, scales, product = quantise.blocks(matrix(), block)
    checkpoint = open_checkpoint(tmp_path, {NAME: numbers, f"{NAME}_scale_inv": scales}, config)
    assert torch.equal(checkpoint.tensor(NAME, (150, 300)), product)


def test_a_scale_for_the_whole_matrix(tmp_path: Path) -> None:
    """One number scales all."""
    numbers = matrix(4, 6).to(torch.float8_e4m3fn)
    checkpoint = open_checkpoint(tmp_path, {NAME: numbers, f"{NAME}_scale_inv": torch.tensor(0.5)})
    assert torch.equal(checkpoint.mapped(NAME, (4, 6)), numbers.float() / 2)


def test_a_model_with_fp8_linears(tmp_path: Path) -> None:
    """A model whose projections are FP8 is the model of their products; scales of activations are left alone."""
    weights, rounded = checkpoints.tensors(), checkpoints.tensors()
    for name in list(weights):
        if ".layers." in name and "_proj" in name:
            weights[name], weights[f"{name}_scale_inv"], rounded[name] = quantise.blocks(weights[name], (8, 8))
            weights[f"{name.removesuffix('.weight')}.activation_scale"] = torch.ones(1)
    settings = checkpoints.config() | {"quantization_config": FP8 | {"weight_block_size": [8, 8]}}
    for folder in ("fp8", "rounded"):
        (tmp_path / folder).mkdir()
    ours = load_model(checkpoints.write(tmp_path / "fp8", weights, settings))
    assert torch.equal(logits(ours), logits(load_model(checkpoints.write(tmp_path / "rounded", rounded))))


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    """FP8 numbers alone are refused, and so are scales alone."""
    numbers, scales, product = quantise.blocks(matrix(), (128, 128))
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is FP8, but the checkpoint lacks .*_scale_inv"):
        open_checkpoint(tmp_path, {NAME: numbers}).mapped(NAME, (150, 300))
    checkpoint = open_checkpoint(tmp_path, {NAME: product, f"{NAME}_scale_inv": scales})
    checkpoint.mapped(NAME, (150, 300))
    with pytest.raises(CheckpointError, match=r"does not use .*_scale_inv"):
        checkpoint.finish()


def test_scales_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Scales of no block size are refused with both shapes."""
    checkpoint = open_checkpoint(
        tmp_path, {NAME: matrix().to(torch.float8_e4m3fn), f"{NAME}_scale_inv": torch.ones(4, 7)}
    )
    with pytest.raises(CheckpointError, match=r"up_proj\.weight: scales \[4, 7\] do not fit a matrix \[150, 300\]"):
        checkpoint.mapped(NAME, (150, 300))


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [({"quant_method": "awq"}, "'awq' is not served"), (FP8 | {"weight_block_size": [128]}, "weight_block_size")],
)
def test_other_quantisation_is_refused_before_any_weight(tmp_path: Path, quantization: Any, reason: str) -> None:
    """What cannot be dequantised is refused in one line."""
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(tmp_path, {NAME: torch.ones(1)}, quantization)
