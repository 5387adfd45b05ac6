"""What is dispatched meanwhile, by name.

Next: tests/cuda_ops.py
"""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Calls(TorchDispatchMode):
    """Counts the ops that are dispatched; named ranges are the host's, and no op."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and count it."""
        space, _, name = str(func.name()).partition("::")
        if space != "profiler":
            self.names[name] += 1
        return func(*args, **(kwargs or {}))
