"""The vision towers on the CUDA ops, compiled for the CPU: the same features, by the ops that are meant to run.

Next: tests/unit/worker/layers/test_graph.py
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tessera_kernels import cuda
from tests.cuda_ops import emulated_library
from tests.unit.worker.models import checkpoints
from tests.unit.worker.models.test_vision_batch import FAMILIES, ITEMS, item
from worker.layers.graph import EagerGraph
from worker.models.base import EncoderInput, EncoderOutput
from worker.models.encoder import VisionEncoder
from worker.models.loader import load_encoders
from worker.models.vision_batch import VisionBatch, plan
from worker.models.vision_graph import BUCKETS, MAX_ITEMS, MAX_SEGMENTS, VisionGraphs

READY = EncoderInput("image", "patches", torch.randn(8, 96, generator=torch.Generator().manual_seed(3)), (1, 2, 4))
MIXED = [ITEMS[0], READY, *ITEMS[1:]]


@pytest.fixture
def emulated() -> Iterator[None]:
    """Let CPU tensors take the CUDA ops."""
    library = emulated_library()
    if library is None:
        pytest.skip("the emulated CUDA ops are not built (make emulator)")
    with cuda.using(library):
        yield


class Seen(TorchDispatchMode):
    """Counts our ops by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and count it where it is ours."""
        if func.namespace == "tessera_emulated":
            self.ops[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> VisionEncoder:
    """The tower of a checkpoint."""
    [encoder] = load_encoders(folder, dtype)
    assert isinstance(encoder, VisionEncoder)
    return encoder


def check_close(ours: list[EncoderOutput], exact: list[EncoderOutput], tolerance: float) -> None:
    """Compare embeddings and DeepStack features by the RMS of their difference."""
    for one, other in zip(ours, exact, strict=True):
        for left, right in ((one.embeddings, other.embeddings), (one.deepstack, other.deepstack)):
            assert (left is None) == (right is None)
            if left is not None and right is not None:
                assert left.shape == right.shape
                error = (left.float() - right).square().mean().sqrt() / right.square().mean().sqrt()
                assert error < tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_features_are_those_of_the_cpu(
    tmp_path: Path, emulated: None, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Stills, clips and ready patches of all sizes in one forward have the CPU path's features, in their own order."""
    folder = FAMILIES[family](tmp_path)
    with cuda.using(None):
        exact = load(folder)(MIXED)
    check_close(load(folder, dtype)(MIXED), exact, tolerance)


EXPECTED = {
    # two blocks, the first with a DeepStack merger behind it; stills and clips are two products
    "qwen3_vl": {
        "centred_patches": 2, "position_taps": 1, "add_positions": 1, "vision_rotary": 1, "qkv_prepare": 2,
        "segment_attention": 2, "layer_norm": 2, "add_layer_norm": 4, "bias_gelu": 4,
    },
    "glm4v": {
        "centred_patches": 2, "rms_norm": 2, "position_taps": 1, "add_positions": 1, "vision_rotary": 1,
        "qkv_prepare": 2, "segment_attention": 2, "add_rms_norm": 4, "swiglu": 3, "layer_norm": 1, "bias_gelu": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tower_uses_the_cuda_ops(tmp_path: Path, emulated: None, family: str) -> None:
    """One forward dispatches exactly these ops, however many items it has."""
    encoder = load(FAMILIES[family](tmp_path))
    for items in (ITEMS, [*ITEMS, *ITEMS]):
        with Seen() as seen:
            encoder(items)
        assert seen.ops == EXPECTED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_recordings_pad_and_replay(tmp_path: Path, emulated: None, family: str) -> None:
    """A recorded size serves every smaller batch, also after a larger one, with the features of an unrecorded run."""
    encoder = load(FAMILIES[family](tmp_path))
    tower: Any = encoder.tower
    batches = [MIXED, [ITEMS[3]], [item(9, 1, 2, 2, "image")], MIXED[::-1]]
    plain = [encoder(batch) for batch in batches]
    tower.graphs = VisionGraphs(tower, EagerGraph)
    for batch, expected in zip(batches, plain, strict=True):
        check_close(encoder(batch), expected, 1e-6)
    assert list(tower.graphs._recordings) == [BUCKETS[0]]


def test_what_is_not_recorded_runs_as_it_is(tmp_path: Path, emulated: None) -> None:
    """More items, frames or patches than a recording holds go without one."""
    encoder = load(checkpoints.write(tmp_path))
    tower: Any = encoder.tower
    tower.graphs = VisionGraphs(tower, EagerGraph)
    small = item(1, 1, 2, 2, "image")

    def takes(items: list[EncoderInput]) -> bool:
        [pieces] = plan(items, 1 << 20, 2)
        return tower.graphs.takes(VisionBatch(pieces, tower.device))

    assert takes([small] * MAX_ITEMS) and not takes([small] * (MAX_ITEMS + 1))
    assert takes([item(1, 2 * MAX_SEGMENTS, 2, 2)]) and not takes([item(1, 2 * MAX_SEGMENTS + 2, 2, 2)])
    assert takes([item(1, 1, 64, 128, "image")]) and not takes([item(1, 1, 64, 130, "image")])
    check_close(encoder([small] * 65), encoder([small]) * 65, 1e-6)
    assert not tower.graphs._recordings or list(tower.graphs._recordings) == [BUCKETS[0]]


def test_the_cpu_records_nothing(tmp_path: Path) -> None:
    """Recording is for devices whose launches cost; the CPU has no recordings."""
    tower: Any = load(checkpoints.write(tmp_path)).tower
    assert tower.graphs is None
