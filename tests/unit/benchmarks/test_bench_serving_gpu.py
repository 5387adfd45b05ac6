"""The GPU's serving benchmark, tried tiny on the CPU; the pair's part is in tests/e2e/test_serving_benchmark.py."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import serving_gpu
from benchmarks.gpu.busy_time import covered
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.served import Answers
from benchmarks.gpu.serving_plan import FULL, TINY, Plan
from benchmarks.gpu.table import Figure
from benchmarks.process import ContestantError
from benchmarks.timeline import Timeline
from benchmarks.workload import PROMPT_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize(("part", "cases"), [("step", 3 * 2), ("host", 2)])
def test_a_part_runs_without_a_gpu(part: str, cases: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Every case of the part is a row, and no row has a figure."""
    assert serving_gpu.main(["--tiny", "--parts", part]) == 0
    out = capfd.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| ") and not line.startswith("| case")]
    assert len(rows) == cases
    assert all(row.split("|")[2].strip() == "–" for row in rows)
    assert "figures mean nothing" in out


def test_a_part_that_cannot_run_leaves_the_others_theirs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is told in a sentence, a failure with its traceback; the rest runs, and the exit code is 1."""

    def lacks(machine: Machine, plan: Plan) -> list[Figure]:
        raise ContestantError("Traceback:\n  import x\nModuleNotFoundError: No module named 'x'\n")

    def fails(machine: Machine, plan: Plan) -> list[Figure]:
        raise ContestantError("Traceback:\n  line\nRuntimeError: broken inside\n")

    def runs(machine: Machine, plan: Plan) -> list[Figure]:
        return [Figure("a case", math.nan, math.nan, "copy bandwidth")]

    monkeypatch.setattr(serving_gpu, "PARTS", {"step": lacks, "host": fails, "pair": runs})
    assert serving_gpu.main(["--tiny", "--parts", "step,host,pair"]) == 1
    out = capsys.readouterr().out
    assert "step: skipped, since it needs what is not here: No module named 'x'." in out
    assert "host: failed.\nTraceback:" in out and "broken inside" in out
    assert "| a case |" in out


def test_a_package_that_the_pair_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part finds out before it makes a checkpoint, and says which."""
    monkeypatch.setattr("benchmarks.gpu.served.NEEDED", ("no_such_package",))
    with pytest.raises(ImportError) as raised:
        serving_gpu.PARTS["pair"](Machine(torch.device("cpu")), TINY)
    assert serving_gpu.complaint("pair", raised.value).endswith("No module named 'no_such_package'.")


def test_files_are_named_after_device_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of some parts does not write over the whole; both files have machine, limits and command."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    figures = [Figure("a case", 2.0, 1.5, "weight bandwidth", target=0.75)]
    machine = Machine(torch.device("cuda"), 4000.0, 700.0)
    serving_gpu.save(tmp_path, ["step", "host", "pair"], figures, machine)
    serving_gpu.save(tmp_path, ["step"], figures, machine)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"h200-serving{some}.{kind}" for some in ("", "-step") for kind in ("json", "md")
    }
    document = json.loads((tmp_path / "h200-serving-step.json").read_text())
    assert document["command"] == "python -m benchmarks.serving_gpu --parts step"
    assert document["copy_gbps"] == 4000.0 and document["figures"][0]["verdict"] == "met"
    text = (tmp_path / "h200-serving.md").read_text()
    assert "NVIDIA H200" in text and "`python -m benchmarks.serving_gpu`" in text and "| a case | 2.0000 | 75 %" in text


def test_unknown_parts_are_refused() -> None:
    """A part that does not exist ends the program with argparse's exit code; known ones run in their own order."""
    assert serving_gpu.parse(["--parts", "pair,step"]).parts == ["step", "pair"]
    with pytest.raises(SystemExit):
        serving_gpu.parse(["--parts", "step,tower"])


def test_overlapping_spans_count_once() -> None:
    """Kernels on two streams, or one within another, keep the device busy for the time from first to last."""
    assert covered([]) == 0
    assert covered([(10, 12), (0, 4), (1, 2), (3, 6)]) == 8


def test_percentiles_are_over_all_requests_of_all_rounds() -> None:
    """The slowest of a hundred first tokens is the 99th percentile's limit, not one round's worst."""
    rounds = [Timeline(tuple((0.01 * n + 0.5 * part,) for n in range(50)), (0,) * 50) for part in range(2)]
    answers = Answers(rounds, rounds)
    assert answers.first_token_ms(0.5) == pytest.approx(490)
    assert answers.first_token_ms(0.99) == pytest.approx(980)


def test_all_requests_of_a_round_have_a_seat() -> None:
    """Neither program queues or refuses what comes at once, nor cuts an answer short."""
    for plan in (FULL, TINY):
        most = max(plan.rounds)
        assert plan.worker["max_sequences"] == plan.gateway["max_requests"] == most
        assert PROMPT_TOKENS + plan.new_tokens <= int(plan.worker["max_model_len"])
