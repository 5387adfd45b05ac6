"""Experts from every layout on disk: one tensor each, fused, fused and transposed; in fp32, bf16 and FP8.

Next: tests/unit/worker/models/test_fp8.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.worker.models import quantise
from worker.layers.experts import load_experts
from worker.models.checkpoint import Checkpoint, CheckpointError

EXPERTS, PREFIX = 3, "model.language_model.layers.0.mlp.experts."
CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def matrices(hidden: int, inner: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up (experts, 2 * inner, hidden), and down (experts, hidden, inner)."""
    generator = torch.Generator().manual_seed(hidden)
    return tuple(torch.randn(EXPERTS, *shape, generator=generator) for shape in ((2 * inner, hidden), (hidden, inner)))  # type: ignore[return-value]


def single(gate_up: torch.Tensor, down: torch.Tensor) -> Tensors:
    """One tensor for each expert and projection."""
    tensors: Tensors = {}
    for index in range(EXPERTS):
        gate, up = gate_up[index].chunk(2)
        tensors |= {f"{index}.gate_proj.weight": gate, f"{index}.up_proj.weight": up}
        tensors |= {f"{index}.down_proj.weight": down[index]}
    return tensors


def fused(gate_up: torch.Tensor, down: torch.Tensor) -> Tensors:
    """Two stacks, (experts, out, in)."""
    return {"gate_up_proj": gate_up, "down_proj": down}


def transposed(gate_up: torch.Tensor, down: torch.Tensor) -> Tensors:
    """Two stacks, (experts, in, out)."""
    return {"gate_up_proj": gate_up.transpose(1, 2), "down_proj": down.transpose(1, 2)}


LAYOUTS = {"single": single, "fused": fused, "transposed": transposed}


def open_checkpoint(path: Path, tensors: Tensors) -> Checkpoint:
    """Write the tensors below the experts' prefix and open the file."""
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return Checkpoint(path, torch.float32, CPU)


def answers(checkpoint: Checkpoint, hidden: int, inner: int) -> torch.Tensor:
    """What each expert says to some rows, all tensors of the checkpoint being used."""
    experts = load_experts(checkpoint.under(PREFIX[:-1]), EXPERTS, hidden, inner)
    checkpoint.finish()
    x = torch.randn(EXPERTS, hidden, generator=torch.Generator().manual_seed(9))
    return experts.apply(x, torch.arange(EXPERTS)[:, None], torch.ones(EXPERTS, 1))


def expected(gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The same in float64, straight from the matrices."""
    x = torch.randn(EXPERTS, down.shape[1], generator=torch.Generator().manual_seed(9)).double()
    gate, up = (gate_up.double() @ x[..., None]).chunk(2, dim=1)
    return (down.double() @ (torch.nn.functional.silu(gate) * up))[..., 0]


# hidden equal to twice the inner width, or to it, makes one of the two stacks square: it tells nothing by itself
@pytest.mark.parametrize(("hidden", "inner"), [(24, 10), (20, 10), (10, 10), (10, 20)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, hidden: int, inner: int) -> None:
    """Every layout gives the same experts, those with a square stack too."""
    stored = matrices(hidden, inner)
    out = answers(open_checkpoint(tmp_path, LAYOUTS[layout](*stored)), hidden, inner)
    assert (out - expected(*stored)).abs().max() < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_files(tmp_path: Path, layout: str) -> None:
    """Half-width numbers are widened on the way in."""
    stored = tuple(matrix.bfloat16() for matrix in matrices(24, 10))
    out = answers(open_checkpoint(tmp_path, LAYOUTS[layout](*stored)), 24, 10)
    assert (out - expected(*stored)).abs().max() < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fp8_files(tmp_path: Path, layout: str) -> None:
    """Blocks of 128 x 128, the last of them cut off, are multiplied out whichever way the experts lie."""
    hidden, inner = 150, 100
    wide = LAYOUTS[layout](*matrices(hidden, inner))
    tensors: Tensors = {}
    rounded: Tensors = {}
    for name, tensor in wide.items():
        tensors[name], tensors[f"{name}_scale_inv"], rounded[name] = quantise.blocks(tensor, (128, 128))
    out = answers(open_checkpoint(tmp_path, tensors), hidden, inner)
    again = tmp_path / "again"
    again.mkdir()
    assert torch.equal(out, answers(open_checkpoint(again, rounded), hidden, inner))


def test_stacks_are_not_copied(tmp_path: Path) -> None:
    """The matrices of a stack are views of the mapped file, so loading holds no second copy of it."""
    source = open_checkpoint(tmp_path, fused(*matrices(24, 10))).under(PREFIX[:-1])
    first, *others = source.slices("gate_up_proj", (EXPERTS, 20, 24))
    assert all(other.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for other in others)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    """The error for an expert that is not there says which tensor is missing."""
    tensors = single(*matrices(24, 10))
    del tensors["2.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks .*experts\.2\.up_proj\.weight"):
        answers(open_checkpoint(tmp_path, tensors), 24, 10)


def test_a_stack_of_another_shape_is_named(tmp_path: Path) -> None:
    """A stack that fits neither way is refused with both shapes."""
    tensors = fused(*matrices(24, 10)) | {"down_proj": torch.zeros(EXPERTS, 24, 11)}
    with pytest.raises(CheckpointError, match=r"down_proj .* is \[3, 24, 11\], not \[3, 24, 10\]"):
        answers(open_checkpoint(tmp_path, tensors), 24, 10)


def test_a_stack_alone_is_named(tmp_path: Path) -> None:
    """Gate and up without the down projection are refused."""
    tensors = transposed(*matrices(24, 10))
    del tensors["down_proj"]
    with pytest.raises(CheckpointError, match=r"lacks .*down_proj"):
        answers(open_checkpoint(tmp_path, tensors), 24, 10)
