"""The rows on disk."""

import json
from pathlib import Path

from benchmarks.results import cpu_name, describe_run, write_results
from benchmarks.row import Row

RUN = {"command": "make bench", "date": "2026-01-01"}


def test_rows_have_the_promised_fields(tmp_path: Path) -> None:
    """Each row has name, ours, other, ratio, target and unit, and what else was seen."""
    file = tmp_path / "results" / "latest.json"
    write_results(file, [Row("decode_1", 20.0, 10.0, 1.8, "tok/s", limit=25.0)], RUN, ["decode_1"])
    document = json.loads(file.read_text())
    (row,) = document["rows"]
    assert document["command"] == "make bench"
    assert {name: row[name] for name in ("name", "ours", "other", "ratio", "target", "unit")} == {
        "name": "decode_1", "ours": 20.0, "other": 10.0, "ratio": 2.0, "target": 1.8, "unit": "tok/s",
    }  # fmt: skip
    assert row["met"] is True and row["of_limit"] == 0.8


def test_rows_that_were_not_asked_stay(tmp_path: Path) -> None:
    """A run of some rows replaces those alone; each row names the run that it came from, in the table's order."""
    file, order = tmp_path / "latest.json", ["a", "b"]
    write_results(file, [Row("b", 1.0, 1.0, 1.0, "s"), Row("a", 1.0, 1.0, 1.0, "s")], RUN, order)
    write_results(file, [Row("a", 2.0, 1.0, 1.0, "s")], {"command": "again", "date": "2026-01-02"}, order)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["name"], row["ours"], row["command"]) for row in rows] == [
        ("a", 2.0, "again"),
        ("b", 1.0, "make bench"),
    ]


def test_a_run_says_what_it_depends_on() -> None:
    """Command, date, processor, threads and versions stand beside the rows."""
    run = describe_run(["python", "-m", "benchmarks"], threads=2)
    assert run["command"] == "python -m benchmarks"
    assert {"date", "cpu", "threads", "dtype", "python", "versions"} <= run.keys()
    assert run["versions"]["transformers"] == "5.23.0"


def test_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    """The first "model name" of /proc/cpuinfo is taken; without the file Python is asked."""
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Fast CPU: 3000\nprocessor\t: 1\n")
    assert cpu_name(file) == "Fast CPU: 3000"
    assert cpu_name(tmp_path / "none")
