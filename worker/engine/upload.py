"""A step's small arrays on their way to the device: one copy for all of them, from memory that the device reads itself.

Next: worker/engine/batch.py
"""

from collections.abc import Sequence

import numpy as np
import torch

_ALIGNMENT = 16  # bytes: the widest access of a kernel


class Upload:
    """Puts arrays on a device; on the CPU the tensors are views of the arrays.

    On the CPU what it returns holds until the arrays change; elsewhere for good.

    Args:
        device: where tensors go.
        staged: whether arrays are copied side by side first; None: wherever the device is not the CPU.
    """

    def __init__(self, device: torch.device, staged: bool | None = None) -> None:
        self._device = device
        self._staged = device.type != "cpu" if staged is None else staged
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Return one tensor for each array, of its shape and type."""
        if not self._staged:
            return [torch.from_numpy(array) for array in arrays]
        starts = [0]
        for array in arrays:
            starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT)
        if self._copied is not None:
            self._copied.synchronize()  # a step that draws no token does not wait for the device
        self._reserve(starts[-1])
        staged = self._memory.numpy()
        for array, start in zip(arrays, starts, strict=False):
            staged[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        moved = self._memory[: starts[-1]].to(self._device, non_blocking=True, copy=True)
        if self._device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()
        return [
            moved[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
            for array, start in zip(arrays, starts, strict=False)
        ]

    def _reserve(self, size: int) -> None:
        if self._memory.numel() < size:
            self._memory = torch.empty(2 * size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
