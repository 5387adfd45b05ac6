"""Token embedding and output head; tied ones are one matrix in memory.

Next: worker/layers/linear.py
"""

import torch
import torch.nn.functional as F

from worker.layers.linear import Linear
from worker.layers.source import WeightSource


class Embedding:
    """Rows of a table by token id.

    Args:
        table: (vocab, hidden), in memory or mapped from the checkpoint file; None where `head` gives the rows.
        head: the tied head, or None.
        dtype: type of the returned rows.
    """

    def __init__(self, table: torch.Tensor | None, head: Linear | None, dtype: torch.dtype) -> None:
        self.table = table
        self.head = head
        self.dtype = dtype

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (n,) int64 -> (n, hidden)."""
        if self.table is None:
            assert self.head is not None
            return self.head.weight.read_rows(ids)
        return F.embedding(ids, self.table).to(self.dtype)


def load_embedding_and_head(
    source: WeightSource, vocab_size: int, hidden_size: int, tied: bool
) -> tuple[Embedding, Linear]:
    """Read `model.language_model.embed_tokens` and `lm_head`.

    On the CPU the rows of an untied table stay in the mapped file, whose pages the system may drop again: of the whole
    table a request touches only its own tokens. A tied one is read back from the packed head, where that can be done.
    """
    name = "model.language_model.embed_tokens"
    head = Linear.load(source, [(name if tied else "lm_head", vocab_size)], hidden_size)
    if tied and head.weight.reads_rows:
        return Embedding(None, head, source.dtype), head
    read = source.mapped if source.device.type == "cpu" else source.tensor
    return Embedding(read(f"{name}.weight", (vocab_size, hidden_size)), None, source.dtype), head
