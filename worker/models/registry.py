"""Architectures and the classes that serve them, imported only when asked for.

Next: worker/models/loader.py
"""

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from worker.models.checkpoint import CheckpointError
from worker.models.multimodal_lm import MultimodalLM


@dataclass(frozen=True)
class Requirement:
    """A package that an architecture needs and others do not.

    Args:
        module: as imported.
        remedy: how to get it, as "pip install soundfile".
    """

    module: str
    remedy: str


@dataclass(frozen=True)
class Entry:
    """Who serves an architecture: "package.module:Class", and what that needs."""

    target: str
    requires: tuple[Requirement, ...] = ()


class Registry:
    """Names in config.json to the classes that serve them."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def register(self, architecture: str, target: str, requires: Iterable[Requirement] = ()) -> None:
        """Serve an architecture by a class; a second registration warns, and the newer serves.

        Args:
            architecture: as in config.json's `architectures`.
            target: "package.module:Class", imported on first use.
            requires: packages to check for at start, for this architecture alone.
        """
        older = self._entries.get(architecture)
        if older is not None:
            warnings.warn(f"{architecture} was served by {older.target}; {target} serves it now", stacklevel=2)
        self._entries[architecture] = Entry(target, tuple(requires))

    @property
    def architectures(self) -> tuple[str, ...]:
        """Served names, sorted."""
        return tuple(sorted(self._entries))

    def resolve(self, architectures: Iterable[str]) -> tuple[str, type[MultimodalLM]]:
        """Return the first served name, and its class.

        Args:
            architectures: the names of a config.json, in order.

        Raises:
            CheckpointError: none is served, or what it needs is not installed.
        """
        names = tuple(architectures)
        for name in names:
            entry = self._entries.get(name)
            if entry is not None:
                _check_requirements(name, entry)
                module, _, attribute = entry.target.partition(":")
                return name, getattr(importlib.import_module(module), attribute)
        raise CheckpointError(
            f"architecture {', '.join(names) or '(none)'} is not served; served are {', '.join(self.architectures)}"
        )


def _check_requirements(architecture: str, entry: Entry) -> None:
    for requirement in entry.requires:
        if importlib.util.find_spec(requirement.module) is None:
            raise CheckpointError(f"{architecture} needs the package {requirement.module}: {requirement.remedy}")


REGISTRY = Registry()
REGISTRY.register("Qwen3VLForConditionalGeneration", "worker.models.qwen3_vl:Qwen3VL")
REGISTRY.register("Qwen3VLMoeForConditionalGeneration", "worker.models.qwen3_vl_moe:Qwen3VLMoe")
REGISTRY.register("Glm4vForConditionalGeneration", "worker.models.glm4v:Glm4v")
REGISTRY.register("Glm4vMoeForConditionalGeneration", "worker.models.glm4v_moe:Glm4vMoe")
REGISTRY.register("Glm46VForConditionalGeneration", "worker.models.glm46v:Glm46V")
REGISTRY.register("InternS1ProForConditionalGeneration", "worker.models.interns1_pro:InternS1Pro")
REGISTRY.register("Qwen3_5ForConditionalGeneration", "worker.models.qwen3_5:Qwen3_5")
REGISTRY.register("Qwen3_5ForCausalLM", "worker.models.qwen3_5:Qwen3_5")
REGISTRY.register("Qwen3_5MoeForConditionalGeneration", "worker.models.qwen3_5_moe:Qwen3_5Moe")
REGISTRY.register("Qwen3_5MoeForCausalLM", "worker.models.qwen3_5_moe:Qwen3_5Moe")
