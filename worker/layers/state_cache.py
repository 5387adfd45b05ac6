"""Recurrent state of linear attention: storage only; which slot belongs to whom is the state pool's business.

Next: worker/engine/state_pool.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tessera_kernels import ops


@dataclass(frozen=True)
class StateShape:
    """What one sequence keeps in all linear attention layers together.

    Args:
        num_layers: linear attention layers.
        conv_channels: channels of their causal convolution.
        conv_width: inputs that the convolution carries from step to step: its kernel's length less one.
        num_heads: value heads.
        key_dim: rows of a head's state.
        value_dim: columns of a head's state.
        conv_dtype: of the carried inputs; the state itself is fp32, since it adds up over the whole sequence.
    """

    num_layers: int
    conv_channels: int
    conv_width: int
    num_heads: int
    key_dim: int
    value_dim: int
    conv_dtype: torch.dtype

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot over all layers."""
        conv = self.conv_channels * self.conv_width * self.conv_dtype.itemsize
        recurrent = self.num_heads * self.key_dim * self.value_dim * torch.float32.itemsize
        return self.num_layers * (conv + recurrent)


class StateCache:
    """Slots of recurrent state; a slot id is shared by all layers.

    Args:
        shape: of a slot.
        num_slots: slots.
        device: where they live.
    """

    def __init__(self, shape: StateShape, num_slots: int, device: torch.device | str) -> None:
        self.shape = shape
        self.num_slots = num_slots
        # Never zeroed: a sequence that begins starts from zero, whatever its slot holds.
        self.conv = torch.empty(
            (shape.num_layers, num_slots, shape.conv_channels, shape.conv_width), dtype=shape.conv_dtype, device=device
        )
        self.recurrent = torch.empty(
            (shape.num_layers, num_slots, shape.num_heads, shape.key_dim, shape.value_dim),
            dtype=torch.float32,
            device=device,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.shape.slot_bytes

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's slots.

        Returns:
            conv (num_slots, conv_channels, conv_width), oldest input first, and
            recurrent fp32 (num_slots, num_heads, key_dim, value_dim).
        """
        return self.conv[index], self.recurrent[index]

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole slots in all layers.

        Args:
            pairs: (source slot, destination slot); no slot is both.
        """
        for states in (self.conv, self.recurrent):
            ops.copy_slots(states.flatten(2), pairs)
