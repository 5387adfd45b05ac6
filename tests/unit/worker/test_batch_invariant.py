"""The flag --batch-invariant: it reaches the kernels, or the worker says in one line why it cannot hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.errors import FailedPrecondition
from tessera.settings import load_settings
from tessera_kernels import cpu, invariance, library
from tessera_kernels.reference_sampling import thresholds
from tessera_kernels.sampling_batch import ROW
from worker.boot import boot, refuse_variance
from worker.settings import WorkerSettings

SETTINGS = WorkerSettings(model="none", batch_invariant=True, device="cpu")


def refusal(settings: WorkerSettings) -> str:
    """Return why the worker does not start; no file of the model is read."""
    with invariance.using(False):
        threads = torch.get_num_threads()
        try:
            with pytest.raises(FailedPrecondition) as caught:
                boot(settings, lambda state, share: pytest.fail(f"{state} {share}"))
        finally:
            torch.set_num_threads(threads)
    assert caught.value.reason == "BATCH_INVARIANCE_UNAVAILABLE"
    return str(caught.value)


def test_the_flag_is_read() -> None:
    """By flag and by variable; off unless asked for."""
    assert not load_settings(WorkerSettings, ["--model", "m"], {}).batch_invariant
    assert load_settings(WorkerSettings, ["--model", "m", "--batch-invariant"], {}).batch_invariant
    assert load_settings(WorkerSettings, ["--model", "m"], {"TESSERA_BATCH_INVARIANT": "true"}).batch_invariant


def test_bfloat16_is_refused() -> None:
    """Another type than float32 ends the start with a line that names it."""
    if cpu.available():
        assert "runs in bfloat16" in refusal(replace(SETTINGS, dtype="bfloat16"))


def test_a_missing_library_is_refused(tmp_path: Path) -> None:
    """Where nothing is built, the line says what to run."""
    with cpu.using(library.load(tmp_path)):
        assert "make kernels" in refusal(SETTINGS)


def test_heads_that_no_kernel_takes_are_refused() -> None:
    """A head size of the language model that is no whole vector is named."""
    if cpu.available():
        with pytest.raises(
            FailedPrecondition, match=r"cannot hold here: the language model's heads of 20 are no whole"
        ):
            refuse_variance(invariance.head_obstacle(20, torch.float32, torch.device("cpu")))


def test_a_nucleus_depends_on_its_row_alone() -> None:
    """The threshold of top-p is the same for a row alone and beside others, by one thread and by two."""
    torch.manual_seed(0)
    scores = torch.randn(3, 70_001) * 2
    scaled = scores - scores.amax(-1, keepdim=True)
    rows = np.zeros(3, ROW)
    rows["top_p"], rows["reach"] = 0.9, np.inf
    threads = torch.get_num_threads()
    found = []
    try:
        with invariance.using(True):
            for count in (1, 2):
                torch.set_num_threads(count)
                with invariance.one_thread():
                    alone = torch.cat([thresholds(row[None], rows[:1]) for row in scaled])
                    found += [alone, thresholds(scaled, rows)]
                assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
