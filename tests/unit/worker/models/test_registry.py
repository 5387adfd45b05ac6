"""The registry: lazy, one class an architecture, loud about doubles.

Next: tests/unit/worker/models/test_info.py
"""

import sys

import pytest

from worker.models.checkpoint import CheckpointError
from worker.models.registry import REGISTRY, Registry, Requirement


def test_a_class_is_imported_when_asked_for() -> None:
    """Registering a module that does not exist is no error until it is resolved."""
    registry = Registry()
    registry.register("Odd", "worker.models.odd_module:Odd")
    with pytest.raises(ModuleNotFoundError):
        registry.resolve(["Odd"])


def test_the_first_served_name_counts() -> None:
    """Of several architectures in a config, the first that is served is taken."""
    registry = Registry()
    registry.register("B", "collections:OrderedDict")
    registry.register("C", "collections:Counter")
    name, resolved = registry.resolve(["A", "B", "C"])
    assert (name, resolved.__name__) == ("B", "OrderedDict")


def test_a_second_registration_warns_and_serves() -> None:
    """The warning names both, and the newer one is what resolves."""
    registry = Registry()
    registry.register("B", "collections:OrderedDict")
    with pytest.warns(UserWarning, match="collections:OrderedDict.*collections:Counter"):
        registry.register("B", "collections:Counter")
    assert registry.resolve(["B"])[1].__name__ == "Counter"


def test_an_unknown_name_lists_what_is_served() -> None:
    """The error names the request and every served architecture."""
    registry = Registry()
    registry.register("B", "collections:OrderedDict")
    registry.register("A", "collections:OrderedDict")
    with pytest.raises(CheckpointError, match="architecture X, Y is not served; served are A, B"):
        registry.resolve(["X", "Y"])


def test_a_name_is_never_matched_by_its_prefix() -> None:
    """An architecture that begins like a served one is refused by its own name."""
    for name in ("InternS2PreviewForConditionalGeneration", "Qwen3VLForConditionalGenerationPreview", "Qwen3VL"):
        with pytest.raises(CheckpointError, match=f"architecture {name} is not served"):
            REGISTRY.resolve([name])


def test_what_an_architecture_needs_is_checked_for_it_alone() -> None:
    """A missing package fails the architecture that needs it, in one line with the remedy, and no other."""
    registry = Registry()
    registry.register("B", "collections:OrderedDict")
    registry.register("A", "collections:Counter", requires=[Requirement("no_such_package", "pip install no-such")])
    assert registry.resolve(["B"])[0] == "B"
    with pytest.raises(CheckpointError, match=r"^A needs the package no_such_package: pip install no-such$"):
        registry.resolve(["A"])


def test_the_worker_serves_qwen3_vl() -> None:
    """The worker's own registry resolves the family to its class."""
    assert "Qwen3VLForConditionalGeneration" in REGISTRY.architectures
    assert REGISTRY.resolve(["Qwen3VLForConditionalGeneration"])[1].__module__ in sys.modules
