"""The least that the workload costs."""

import pytest

from benchmarks.checkpoint import ModelSize
from benchmarks.costs import Costs, Machine

COSTS = Costs(ModelSize(), new_tokens=64)
MACHINE = Machine(read_bytes_s=30e9, gemm_flop_s=160e9)


def test_counts_are_those_of_the_published_workload() -> None:
    """285 M weights (1.14 GB) are read in a decode step, and a prefill takes some 318 GFLOP."""
    assert COSTS.text_weights + COSTS.head_weights == pytest.approx(285e6, rel=0.01)
    assert COSTS.prefill_flop == pytest.approx(318e9, rel=0.05)


def test_one_sequence_decodes_at_memory_speed() -> None:
    """The limit is bandwidth over the bytes of weights and cache: 25 tokens a second at 30 GB/s."""
    assert COSTS.decode_tokens_s(MACHINE, 1) == pytest.approx(25.4, rel=0.02)


def test_many_sequences_decode_at_the_speed_of_products() -> None:
    """A hundred share one reading of the weights, so that multiplying takes longer than reading."""
    weights = COSTS.text_weights + COSTS.head_weights
    assert COSTS.step_s(MACHINE, 100) == pytest.approx(2 * weights * 100 / 160e9)


def test_total_counts_prefills_one_after_the_other_and_decodes_together() -> None:
    """Eight requests: eight prefills, then 63 common steps."""
    seconds = 8 * COSTS.prefill_s(MACHINE) + 63 * COSTS.step_s(MACHINE, 8)
    assert COSTS.total_tokens_s(MACHINE, 8) == pytest.approx(8 * 64 / seconds)
