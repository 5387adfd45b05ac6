"""The time series encoder on the CUDA ops, compiled for the CPU: the same embeddings, by the ops that are meant to run.

Next: tests/unit/worker/models/test_interns1_pro.py
"""

from pathlib import Path

import pytest
import torch

from tessera_kernels import cuda
from tests.tiny_interns1_pro import make_tiny_interns1_pro
from tests.unit.worker.models.test_vision_cuda import Seen, emulated
from worker.models.base import EncoderInput
from worker.models.interns1_pro_time_series import TimeSeriesEncoder
from worker.models.loader import load_encoders

__all__ = ["emulated"]  # a fixture

pytestmark = pytest.mark.slow

SMALL = {"num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2}


def series(length: int, channels: int, rate: float) -> EncoderInput:
    """A noisy series far from zero."""
    samples = torch.randn(length, channels, generator=torch.Generator().manual_seed(length)) * 3 + 100
    return EncoderInput("time_series", "samples", samples, sampling_rate_hz=rate)


# two series of one stride side by side, one of another
ITEMS = [series(30, 2, 10.0), series(50, 1, 60.0), series(21, 1, 10.0)]


def load(folder: Path, dtype: torch.dtype) -> TimeSeriesEncoder:
    """The encoder of a checkpoint."""
    [encoder] = [part for part in load_encoders(folder, dtype) if isinstance(part, TimeSeriesEncoder)]
    return encoder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_embeddings_are_those_of_the_cpu(tmp_path: Path, emulated: None, dtype: torch.dtype, tolerance: float) -> None:
    """Series of all strides have the CPU path's embeddings; each stride's patches take one launch a part."""
    folder = make_tiny_interns1_pro(tmp_path, text=SMALL, series={"encoder_layers": 1})
    with cuda.using(None):
        exact = load(folder, torch.float32).run(ITEMS)
    encoder = load(folder, dtype)
    with Seen() as seen:
        ours = encoder.run(ITEMS)
    assert seen.ops["normalise_series"] == len(ITEMS)
    assert seen.ops["series_patches"] == 2
    for one, other in zip(ours, exact, strict=True):
        error = (one.embeddings.float() - other.embeddings).square().mean() / other.embeddings.square().mean()
        assert error.sqrt() < tolerance
