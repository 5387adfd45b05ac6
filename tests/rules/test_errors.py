"""The error table is whole: every error has its status, and every reason is one that a program can read.

Next: tests/rules/test_files.py
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera.errors import ERRORS, ServeError

ROOT = Path(__file__).parents[2]
SERVERS = ("gateway", "worker", "protos/tessera")
# Constructors whose errors reach a caller: the tree's, and the media processes' stand-in for it.
RAISED = {error.__name__ for error in ERRORS} | {"MediaProblem"}


def subclasses(kind: type) -> set[type]:
    """All classes below one."""
    return {kind_ for child in kind.__subclasses__() for kind_ in {child} | subclasses(child)}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(place, call) of every construction of an error in the servers."""
    for folder in SERVERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "_pb2" in path.name:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_error_class_is_in_the_table() -> None:
    """A new kind of error has a status, or the build fails."""
    # So that the servers' own classes, if any, are known.
    for module in ("gateway.server", "worker.server"):
        importlib.import_module(module)
    assert subclasses(ServeError) == set(ERRORS)


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_class_is_documented(kind: type[ServeError]) -> None:
    """Each class says in a sentence when it is raised, and the client's contract names its status."""
    assert (kind.__doc__ or "").strip().endswith(".")
    contract = (ROOT / "protos/tessera/v1/inference_service.proto").read_text()
    assert re.search(rf"\b{kind.code.name}\b", contract), f"{kind.code.name} is not named in inference_service.proto"


def test_reasons_are_upper_snake() -> None:
    """Every literal reason is UPPER_SNAKE of at most 63 characters, as google.rpc.ErrorInfo wants it."""
    bad = []
    for place, call in calls():
        for keyword in call.keywords:
            if keyword.arg != "reason" or not isinstance(keyword.value, ast.Constant):
                continue
            if not re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", str(keyword.value.value)):
                bad.append(f"{place}: {keyword.value.value}")
    assert not bad, "\n".join(bad)


def test_texts_are_sentences() -> None:
    """What a caller reads begins with a capital letter or a value, and ends like a sentence."""
    bad = []
    for place, call in calls():
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
            text = call.args[0].value
            if not re.fullmatch(r"[A-Z0-9\"'].*[.!)]", text, re.DOTALL):
                bad.append(f"{place}: {text}")
    assert not bad, "\n".join(bad)
