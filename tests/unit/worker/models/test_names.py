"""The spellings of tensor names that releases of every family use.

Next: tests/unit/worker/models/test_qwen3_vl_moe.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from worker.models.checkpoint import Checkpoint, CheckpointError
from worker.models.names import canonical_name

LAYER = "layers.0.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        (f"model.language_model.{LAYER}", f"model.language_model.{LAYER}"),
        (f"model.language_model.model.{LAYER}", f"model.language_model.{LAYER}"),
        (f"language_model.model.{LAYER}", f"model.language_model.{LAYER}"),
        (f"language_model.{LAYER}", f"model.language_model.{LAYER}"),
        (f"model.{LAYER}", f"model.language_model.{LAYER}"),
        (LAYER, f"model.language_model.{LAYER}"),
        ("embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("norm.weight", "model.language_model.norm.weight"),
        ("model.rotary_emb.cos_coef", "model.language_model.rotary_emb.cos_coef"),
        ("model.language_model.rotary_emb.sin_coef", "model.language_model.rotary_emb.sin_coef"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("model.visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
        ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
        ("vision_tower.encoder.weight", "model.vision_tower.encoder.weight"),
        ("model.vision_tower.encoder.weight", "model.vision_tower.encoder.weight"),
        ("model.multi_modal_projector.weight", "model.multi_modal_projector.weight"),
        ("multi_modal_projector.weight", "model.multi_modal_projector.weight"),
        ("model.time_series.encoder.weight", "model.time_series.encoder.weight"),
        ("time_series.encoder.weight", "model.time_series.encoder.weight"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp.layers.0.mlp.up_proj.weight"),
        ("model.mtp.norm.weight", "mtp.norm.weight"),
        ("odd.weight", "odd.weight"),
    ],
)
def test_canonical_names(stored: str, canonical: str) -> None:
    """Every spelling comes to one, which stays as it is when it is read again."""
    assert canonical_name(stored) == canonical
    assert canonical_name(canonical) == canonical


def test_one_tensor_in_two_spellings_is_refused(tmp_path: Path) -> None:
    """Two stored tensors of one canonical name are told, instead of taking whichever came last."""
    save_file({"norm.weight": torch.ones(1), "model.norm.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.weight .* are the same tensor"):
        Checkpoint(tmp_path, torch.float32, torch.device("cpu"))


def test_shapes_are_told_without_reading(tmp_path: Path) -> None:
    """A tensor's shape is known before it is taken; one that is not there has none."""
    save_file({"layers.0.weight": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, torch.float32, torch.device("cpu"))
    source = checkpoint.under("model.language_model.layers.0")
    assert (source.shape("weight"), source.shape("bias")) == ((2, 3), None)
    with pytest.raises(CheckpointError, match="does not use"):
        checkpoint.finish()
