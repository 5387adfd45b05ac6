"""Architectures and the classes that serve them, imported only when asked for.

Next: worker/models/loader.py
"""

import importlib
import warnings
from collections.abc import Iterable

from worker.models.base import CausalLM
from worker.models.checkpoint import CheckpointError


class Registry:
    """Names in config.json to "module:Class"."""

    def __init__(self) -> None:
        self._targets: dict[str, str] = {}

    def register(self, architecture: str, target: str) -> None:
        """Serve an architecture by a class; a second registration warns, and the newer serves.

        Args:
            architecture: as in config.json's `architectures`.
            target: "package.module:Class", imported on first use.
        """
        older = self._targets.get(architecture)
        if older is not None:
            warnings.warn(f"{architecture} was served by {older}; {target} serves it now", stacklevel=2)
        self._targets[architecture] = target

    @property
    def architectures(self) -> tuple[str, ...]:
        """Served names, sorted."""
        return tuple(sorted(self._targets))

    def resolve(self, architectures: Iterable[str]) -> tuple[str, type[CausalLM]]:
        """Return the first served name, and its class.

        Args:
            architectures: the names of a config.json, in order.

        Raises:
            CheckpointError: none is served.
        """
        names = tuple(architectures)
        for name in names:
            if name in self._targets:
                module, _, attribute = self._targets[name].partition(":")
                return name, getattr(importlib.import_module(module), attribute)
        raise CheckpointError(
            f"architecture {', '.join(names) or '(none)'} is not served; served are {', '.join(self.architectures)}"
        )


REGISTRY = Registry()
REGISTRY.register("Qwen3VLForConditionalGeneration", "worker.models.qwen3_vl:Qwen3VL")
