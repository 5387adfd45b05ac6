"""The pair's part of the GPU's serving benchmark, tried tiny on the CPU.

Next: benchmarks/serving_gpu.py
"""

import pytest

from benchmarks import serving_gpu

pytestmark = pytest.mark.slow


def test_pair_and_transformers_answer_alike(capfd: pytest.CaptureFixture[str]) -> None:
    """Both serve the checkpoint that is made for them, get the same requests, and begin with the same tokens."""
    assert serving_gpu.main(["--tiny", "--parts", "pair"]) == 0
    out = capfd.readouterr().out
    assert out.count("first tokens equal: 1/1") == 2 and out.count("first tokens equal: 3/3") == 2
