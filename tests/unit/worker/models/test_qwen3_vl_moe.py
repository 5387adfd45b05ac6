"""Qwen3-VL-MoE's config and weights: which layers are mixtures, every layout and spelling, errors that name a field.

Next: tests/unit/worker/models/test_registry.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.worker.models import checkpoints
from tests.unit.worker.models.test_loader import logits
from worker.layers.mlp import SwiGluMlp
from worker.layers.moe import MoeMlp
from worker.models.base import ForwardBatch
from worker.models.checkpoint import CheckpointError
from worker.models.loader import load_model
from worker.models.qwen3_vl_moe import Qwen3VLMoe, parse_moe_text_config

EXPERTS, INNER = 4, 10
TEXT = "model.language_model.layers"
Tensors = dict[str, torch.Tensor]


def config(**text: Any) -> dict[str, Any]:
    """config.json with two layers, the first of them dense."""
    settings = checkpoints.config()
    settings |= {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    settings["text_config"] |= {
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": INNER,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
    } | text
    return settings


def tensors() -> Tensors:
    """The checkpoint by canonical name, with one tensor for each expert."""
    found = {name: tensor for name, tensor in checkpoints.tensors().items() if f"{TEXT}.1.mlp" not in name}
    generator = torch.Generator().manual_seed(1)
    shapes = {"gate_proj": (INNER, checkpoints.HIDDEN), "up_proj": (INNER, checkpoints.HIDDEN)}
    shapes["down_proj"] = (checkpoints.HIDDEN, INNER)
    for expert in range(EXPERTS):
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) * 0.3
            found[f"{TEXT}.1.mlp.experts.{expert}.{name}.weight"] = weight
    found[f"{TEXT}.1.mlp.gate.weight"] = torch.randn(EXPERTS, checkpoints.HIDDEN, generator=generator)
    return found


def fused(transposed: bool) -> Tensors:
    """The same with the experts in two stacks."""
    single, mlp = tensors(), f"{TEXT}.1.mlp.experts"
    stacks = {
        name: torch.stack([single[f"{mlp}.{expert}.{name}.weight"] for expert in range(EXPERTS)])
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    pair = {
        f"{mlp}.gate_up_proj": torch.cat((stacks["gate_proj"], stacks["up_proj"]), dim=1),
        f"{mlp}.down_proj": stacks["down_proj"],
    }
    if transposed:
        pair = {name: stack.transpose(1, 2).contiguous() for name, stack in pair.items()}
    return {name: tensor for name, tensor in single.items() if ".experts." not in name} | pair


@pytest.fixture
def expected(tmp_path: Path) -> torch.Tensor:
    """What the plain checkpoint gives."""
    folder = tmp_path / "plain"
    folder.mkdir()
    return logits(load_model(checkpoints.write(folder, tensors(), config())))


@pytest.mark.parametrize("transposed", [True, False])
def test_fused_experts_give_the_same_model(tmp_path: Path, expected: torch.Tensor, transposed: bool) -> None:
    """Experts in two stacks, transposed as published or not, are those of single tensors."""
    model = load_model(checkpoints.write(tmp_path, fused(transposed), config()))
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", "language_model."),
        ("model.language_model.", "model."),
        ("model.visual.", "visual."),
    ],
)
def test_other_spellings_give_the_same_model(tmp_path: Path, expected: torch.Tensor, old: str, new: str) -> None:
    """Every spelling of the prefixes loads, stacks of experts included."""
    weights = {new + name[len(old) :] if name.startswith(old) else name: tensor for name, tensor in fused(True).items()}
    assert torch.equal(logits(load_model(checkpoints.write(tmp_path, weights, config()))), expected)


def test_which_layers_are_mixtures(tmp_path: Path) -> None:
    """Every n-th layer is one, unless it is listed as dense."""

    def sparse(**fields: Any) -> list[int]:
        text = parse_moe_text_config(config(**fields)["text_config"], tied=True)
        return [index for index in range(6) if text.is_sparse(index)]

    assert sparse() == [1, 2, 3, 4, 5]
    assert sparse(mlp_only_layers=[]) == [0, 1, 2, 3, 4, 5]
    assert sparse(mlp_only_layers=None, decoder_sparse_step=2) == [1, 3, 5]
    assert sparse(mlp_only_layers=[3], decoder_sparse_step=2) == [1, 5]
    model = load_model(checkpoints.write(tmp_path, fused(True), config()))
    assert isinstance(model, Qwen3VLMoe)
    kinds = [type(getattr(layer, "mlp", None)) for layer in model.decoder.layers]
    assert kinds == [SwiGluMlp, MoeMlp]


def test_both_spellings_of_the_number_of_experts() -> None:
    """transformers writes `num_local_experts`, publishers `num_experts`."""
    settings = config()["text_config"]
    settings["num_local_experts"] = settings.pop("num_experts")
    assert parse_moe_text_config(settings, tied=True).moe.num_experts == EXPERTS


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_experts": None}, "text_config.num_experts is missing"),
        ({"moe_intermediate_size": None}, "text_config.moe_intermediate_size is missing"),
        ({"num_experts_per_tok": None}, "text_config.num_experts_per_tok is missing"),
        ({"num_experts_per_tok": 5}, "text_config.num_experts_per_tok is 5, but there are 4"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], reason: str) -> None:
    """A size that is missing or impossible is an error that names it."""
    with pytest.raises(CheckpointError, match=reason):
        parse_moe_text_config(config(**fields)["text_config"], tied=True)


def test_a_text_only_checkpoint(tmp_path: Path) -> None:
    """Without a vision part, nested or flat config alike, text is served and nothing else."""
    weights = {name: tensor for name, tensor in fused(True).items() if ".visual." not in name}
    outputs = []
    for folder, flat in (("nested", False), ("flat", True)):
        settings = config()
        del settings["vision_config"]
        if flat:
            settings |= settings.pop("text_config")
        (tmp_path / folder).mkdir()
        model = load_model(checkpoints.write(tmp_path / folder, weights, settings))
        assert model.info.modalities == ()
        batch = ForwardBatch(
            input_ids=torch.tensor([11, 12, 13]),
            positions=torch.arange(3).expand(3, 3),
            slot_mapping=torch.arange(3),
            block_tables=torch.tensor([[0]], dtype=torch.int32),
            context_lens=torch.tensor([3], dtype=torch.int32),
            query_start=torch.tensor([0, 3], dtype=torch.int32),
            logits_indices=torch.tensor([2]),
            query_lens=(3,),
            kv_lens=(3,),
        )
        outputs.append(model.forward(batch, model.make_kv_cache(1, 8)))
    assert torch.isfinite(outputs[0]).all()
    assert torch.equal(*outputs)


def test_sizes_count_the_experts(tmp_path: Path) -> None:
    """Weights and workspace that size the caches include every expert and its rows."""
    model = load_model(checkpoints.write(tmp_path, fused(True), config()))
    matrices = sum(tensor.nbytes for tensor in fused(True).values() if tensor.dim() > 1)
    assert matrices <= model.weight_bytes <= 1.2 * matrices
    wider = load_model(checkpoints.write(tmp_path, fused(True), config(num_experts_per_tok=4)))
    assert wider.forward_workspace_bytes(64, 1) > model.forward_workspace_bytes(64, 1)


def test_bf16(tmp_path: Path, expected: torch.Tensor) -> None:
    """In bf16 the logits are those of fp32 up to its few digits."""
    out = logits(load_model(checkpoints.write(tmp_path, fused(True), config()), dtype="bfloat16"))
    assert (out - expected).abs().max() < 0.1 * expected.abs().max()
