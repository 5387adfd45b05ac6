"""README's tables name tests that exist, and leave no family, modality or way in out.

Nothing is run: what pytest would collect is read from the parametrisation of the test modules.
"""

import fnmatch
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_ways_in import CELLS, FRAME_CELLS
from tests.parity.families import FAMILIES

pytestmark = pytest.mark.slow  # imports every module of comparisons
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COLUMNS = ["qwen3_vl", *FAMILIES, "interns1_pro"]
WAYS_FILE = "tests/e2e/test_ways_in.py"
NOT_SO = "–"  # the family has no such modality, the modality no such way, or the row is not of this family
FAMILY = "FAMILY"  # in a test's parameters: it is there for each of FAMILIES
MODALITIES = {"image", "video", "time_series"}


def table(first: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table whose first cell is `first`, without markup of bold."""
    text = README.partition(f"\n| {first} |")[2].partition("\n\n")[0]
    assert text, f"README has no table that begins with {first!r}"
    lines = [line.strip("| ").replace("**", "").split("|") for line in f"{first} |{text}".splitlines()]
    rows = [[cell.strip() for cell in line] for line in lines]
    return rows[0], rows[2:]


def test_ids(function: Any) -> Iterator[str]:
    """What pytest writes between brackets behind a test's name; nothing for a test without parameters."""
    marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
    sets = [[_id(value) for value in mark.kwargs.get("ids") or mark.args[1]] for mark in marks]
    return ("-".join(parts) for parts in itertools.product(*sets)) if sets else iter(())


def _id(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


test_ids.__test__ = False  # type: ignore[attr-defined]  # it is none itself


def missing(cell: str) -> list[str]:
    """Tests that a cell names and that are not there."""
    lost = []
    links = re.findall(r"\[`(test_\w+)(?:\[([^`]+)\])?`\]\((tests/[\w/]+)\.py\)", cell)
    for name, params, path in links:
        if FAMILY in params:
            lost += [one for family in FAMILIES for one in missing(cell.replace(FAMILY, family))]
            continue
        function = getattr(importlib.import_module(path.replace("/", ".")), name, None)
        found = [""] if function and not params else list(test_ids(function)) if function else []
        # A star stands for the cases of a family.
        if not [one for one in found if fnmatch.fnmatchcase(one, params or "")]:
            lost.append(f"{path}.py::{name}[{params}]")
    return lost if links else [cell]


def test_every_way_in_has_a_cell() -> None:
    """Family × modality × way in: each cell is the test of just that, and each such test has its cell."""
    header, rows = table("modality")
    assert header == ["modality", "way in", *COLUMNS]
    ids = {"-".join(cell) for cell in CELLS} | {f"{family}-video-{way}" for family, way in FRAME_CELLS}
    named = set()
    for modality, way, *cells in rows:
        assert modality in MODALITIES and len(cells) == len(COLUMNS), (modality, way)
        for family, cell in zip(COLUMNS, cells, strict=True):
            expected = f"{family}-{modality}-{way.strip('`')}"
            if cell.startswith("["):
                assert missing(cell) == []
            else:
                assert cell == (f"`{expected}`" if expected in ids else NOT_SO), expected
                named.add(expected)
    assert ids <= named, ids - named


def test_every_comparison_has_a_cell() -> None:
    """Family × what is compared: each cell names tests that exist, and none is empty."""
    header, rows = table("compared")
    assert header == ["compared", "qwen3_vl", f"each {FAMILY} of {', '.join(FAMILIES)}", "interns1_pro"]
    assert len(rows) >= 10
    for what, *cells in rows:
        assert [len(cells), *map(missing, cells)] == [3, [], [], []], what


def test_every_test_that_readme_names_exists() -> None:
    """Also outside of the tables, a file that README names is there."""
    for path in re.findall(r"`((?:tests|docs|examples)/[\w./-]+)`", README):
        assert (ROOT / path).exists(), path
    assert [lost for cell in re.findall(r"\[`test_[^)]+\)", README) for lost in missing(cell)] == []


def test_every_served_architecture_is_named() -> None:
    """What the registry serves stands in README, and nothing else does."""
    from worker.models.registry import REGISTRY

    said = set(re.findall(r"`(\w+For(?:ConditionalGeneration|CausalLM))`", README))
    assert said == set(REGISTRY.architectures)
