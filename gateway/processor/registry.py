"""Finds the processor of a checkpoint by its architecture; a family's module is imported only when it is needed.

Next: qwen3_vl.py.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from gateway.processor.base import Processor
from gateway.processor.checkpoint_files import read_json
from tessera.errors import FailedPrecondition, Unimplemented

FAMILIES = {
    "Qwen3VLForConditionalGeneration": "gateway.processor.qwen3_vl:Qwen3VLProcessor",
}
"""Architecture -> module and class, which has `from_dir(path, config)`."""


def load_processor(model_dir: str | Path) -> Processor:
    """Load the processor of a checkpoint directory.

    Raises:
        FailedPrecondition: a file is missing or contradicts another.
        Unimplemented: an architecture that is not served; names those that are.
    """
    path = Path(model_dir)
    config = read_json(path / "config.json")
    if not config:
        raise FailedPrecondition("The checkpoint has no config.json.", reason="CHECKPOINT_INCOMPLETE")
    architectures = config.get("architectures") or ["(none)"]
    target = FAMILIES.get(architectures[0])
    if target is None:
        raise Unimplemented(
            f"Architecture {architectures[0]} is not served; served are: {', '.join(sorted(FAMILIES))}.",
            reason="ARCHITECTURE_UNSUPPORTED",
        )
    module, _, name = target.partition(":")
    return getattr(import_module(module), name).from_dir(path, config)
