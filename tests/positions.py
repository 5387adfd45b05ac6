"""Positions of tokens, for tests that compare them.

Next: worker/layers/positions.py
"""

import numpy as np
import torch

from tessera_kernels import reference_multimodal


def positions_of(segments: np.ndarray, tokens: int) -> np.ndarray:
    """Return (time, height, width) of the tokens of a prompt or a step, (3, tokens), from its segments."""
    return reference_multimodal.mrope_positions(torch.from_numpy(segments), tokens).numpy()
