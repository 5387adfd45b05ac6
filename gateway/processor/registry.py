"""Finds the processor of a checkpoint by its architecture; a family's module is imported only when it is needed.

Next: multimodal.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from gateway.processor.checkpoint_files import read_json
from gateway.processor.multimodal import MultimodalProcessor
from tessera.errors import FailedPrecondition, Unimplemented


class Registry:
    """Names in config.json to "module:Class", a MultimodalProcessor; no name is ever matched in part."""

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

    def resolve(self, architectures: Iterable[str]) -> tuple[str, type[MultimodalProcessor]]:
        """Return the first served name, and its class.

        Args:
            architectures: the names of a config.json, in order.

        Raises:
            Unimplemented: none is served; names them, and those that are.
        """
        names = tuple(architectures)
        for name in names:
            if name in self._targets:
                module, _, attribute = self._targets[name].partition(":")
                return name, getattr(import_module(module), attribute)
        raise Unimplemented(
            f"Architecture {', '.join(names) or '(none)'} is not served; served are: {', '.join(self.architectures)}.",
            reason="ARCHITECTURE_UNSUPPORTED",
        )


REGISTRY = Registry()
REGISTRY.register("Qwen3VLForConditionalGeneration", "gateway.processor.qwen3_vl:Qwen3VLProcessor")
REGISTRY.register("Qwen3VLMoeForConditionalGeneration", "gateway.processor.qwen3_vl:Qwen3VLProcessor")
REGISTRY.register("Glm4vForConditionalGeneration", "gateway.processor.glm4v:Glm4vProcessor")
REGISTRY.register("Glm4vMoeForConditionalGeneration", "gateway.processor.glm4v:Glm4vProcessor")
REGISTRY.register("Glm46VForConditionalGeneration", "gateway.processor.glm4v:Glm46VProcessor")
REGISTRY.register("InternS1ProForConditionalGeneration", "gateway.processor.interns1_pro:InternS1ProProcessor")
REGISTRY.register("Qwen3_5ForConditionalGeneration", "gateway.processor.qwen3_5:Qwen3_5Processor")
REGISTRY.register("Qwen3_5ForCausalLM", "gateway.processor.qwen3_5:Qwen3_5Processor")
REGISTRY.register("Qwen3_5MoeForConditionalGeneration", "gateway.processor.qwen3_5:Qwen3_5Processor")
REGISTRY.register("Qwen3_5MoeForCausalLM", "gateway.processor.qwen3_5:Qwen3_5Processor")


def load_processor(model_dir: str | Path) -> MultimodalProcessor:
    """Load the processor of a checkpoint directory.

    Raises:
        FailedPrecondition: a file is missing or contradicts another.
        Unimplemented: an architecture that is not served; names those that are.
    """
    path = Path(model_dir)
    config = read_json(path / "config.json")
    if not config:
        raise FailedPrecondition("The checkpoint has no config.json.", reason="CHECKPOINT_INCOMPLETE")
    architecture, family = REGISTRY.resolve(config.get("architectures") or ())
    return family.from_dir(path, config, architecture)
