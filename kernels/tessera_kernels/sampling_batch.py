"""What is to be drawn, as arrays of records: built by the engine on the host, read by the kernels as they are.

Next: kernels/tessera_kernels/reference_sampling.py
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

# A row to draw. source: row of the logits; changed: row of `changes`, -1 where nothing changes its logits; temperature:
# 0 takes the likeliest token; top_k: 0 keeps all; top_p: 1 keeps all; reach: -log(min_p), how far below the likeliest a
# score may lie, infinity keeps all; key: of the noise; num_top: -1 without log probabilities, else how many likeliest
# tokens' are returned beside the drawn one's. SamplingRow in include/sampling.cuh.
ROW = np.dtype([
    ("source", "<i4"), ("changed", "<i4"), ("temperature", "<f4"), ("top_k", "<i4"), ("top_p", "<f4"),
    ("reach", "<f4"), ("key", "<i4", 2), ("num_top", "<i4"),
])  # fmt: skip

# Logits to change. source: row of the logits; begin and end of its entries in `biases` and in `seen`; its penalties;
# drawn: row of `drawn` whose token it has generated besides, -1 for none. ChangedRow in include/penalties.cuh.
CHANGE = np.dtype([
    ("source", "<i4"), ("bias_begin", "<i4"), ("bias_end", "<i4"), ("seen_begin", "<i4"), ("seen_end", "<i4"),
    ("repetition", "<f4"), ("frequency", "<f4"), ("presence", "<f4"), ("drawn", "<i4"),
])  # fmt: skip

# A token with its bias, or with how often it was generated: 0 where the prompt alone has it. At most once a row.
TOKEN_VALUE = np.dtype([("token", "<i4"), ("value", "<f4")])


@dataclass(frozen=True)
class SamplingBatch:
    """What is to be drawn, on the host.

    Args:
        rows: ROW (n,).
        changes: CHANGE (m,).
        biases: TOKEN_VALUE, the entries of all changes.
        seen: likewise.
        drawn: int32 (k, words), `SampledRows.words` of an earlier draw, on the logits' device; None where no change
            names a row of it.
        allowed: int32 (m, ceil(vocab_size / 32)) on the logits' device, or None: token t's bit is in word t // 32.
    """

    rows: np.ndarray
    changes: np.ndarray = field(default_factory=partial(np.zeros, 0, CHANGE))
    biases: np.ndarray = field(default_factory=partial(np.zeros, 0, TOKEN_VALUE))
    seen: np.ndarray = field(default_factory=partial(np.zeros, 0, TOKEN_VALUE))
    drawn: torch.Tensor | None = None
    allowed: torch.Tensor | None = None

    @classmethod
    def greedy(cls, sources: Sequence[int]) -> "SamplingBatch":
        """Return the batch that takes the likeliest token of these rows of the logits."""
        rows = np.zeros(len(sources), ROW)
        rows["source"] = sources
        rows["changed"] = rows["num_top"] = -1
        return cls(rows)

    @cached_property
    def num_top(self) -> int:
        """Most `num_top` of the rows, -1 where none wants log probabilities."""
        return int(self.rows["num_top"].max(initial=-1))

    @cached_property
    def is_random(self) -> bool:
        """Whether any row is drawn by chance."""
        return bool((self.rows["temperature"] != 0).any())

    @cached_property
    def is_cut(self) -> bool:
        """Whether top-k or top-p cuts any such row."""
        cut = (self.rows["top_k"] > 0) | (self.rows["top_p"] < 1)
        return bool((cut & (self.rows["temperature"] != 0)).any())
