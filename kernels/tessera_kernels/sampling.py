"""Draws of tokens: bias and penalties, temperature, top-k, top-p, min-p, noise, log probabilities.

On CUDA all of it happens on the device: what the host has to say goes there in one copy, what was drawn comes back in
one, and nothing in between waits. A CPU's torch gives the same tokens from the same logits; the two differ where the
best two scores are within the rounding of a logarithm, less than once in a million draws.

Next: worker/engine/sampler.py
"""

from typing import NamedTuple

import numpy as np
import torch

from tessera_kernels import cuda, reference_sampling
from tessera_kernels.sampling_batch import CHANGE, ROW, TOKEN_VALUE, SamplingBatch
from tessera_kernels.transfer import on_device

__all__ = ["CHANGE", "ROW", "TOKEN_VALUE", "HostRows", "SampledRows", "SamplingBatch", "gumbel", "sample"]


class HostRows(NamedTuple):
    """What was drawn, on the host.

    Args:
        tokens: one a row.
        logprobs: the drawn tokens' raw log probabilities; empty where no row asked, without meaning for rows that
            did not. Likewise below.
        top_tokens: the likeliest tokens of each row, in order; a row has as many as it asked for, then others.
        top_logprobs: their raw log probabilities.
    """

    tokens: list[int]
    logprobs: list[float]
    top_tokens: list[list[int]]
    top_logprobs: list[list[float]]


class SampledRows:
    """What was drawn, on the logits' device and on its way to the host.

    Args:
        words: int32 (n, 1), or (n, 2 + 2 * num_top): the token; the bits of its fp32 log probability; the likeliest
            tokens; the bits of theirs.
    """

    def __init__(self, words: torch.Tensor) -> None:
        self.words = words
        self._host, self._arrived = words, None
        if words.is_cuda:
            self._host = torch.empty(words.shape, dtype=words.dtype, pin_memory=True)
            self._host.copy_(words, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(words.device))

    @property
    def tokens(self) -> torch.Tensor:
        """The tokens, int32 (n,), on the device."""
        return self.words[:, 0]

    def fetch(self) -> HostRows:
        """Wait for the copy that is under way, and return it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        words = self._host.numpy()
        num_top = (words.shape[1] - 2) // 2
        bits = words.view(np.float32)
        if num_top < 0:
            return HostRows(words[:, 0].tolist(), [], [], [])
        top, rest = words[:, 2 : 2 + num_top], bits[:, 2 + num_top :]
        return HostRows(words[:, 0].tolist(), bits[:, 1].tolist(), top.tolist(), rest.tolist())


def sample(logits: torch.Tensor, batch: SamplingBatch) -> SampledRows:
    """Draw a token for each row of the batch; no device is waited for.

    Args:
        logits: (num_logits, vocab_size), rows that are contiguous; not changed.
        batch: what to draw.
    """
    if not cuda.serves(logits):
        return SampledRows(reference_sampling.sample(logits, batch))
    rows, changes, biases, seen = _on_device(batch, logits.device)
    changed = None
    if len(changes):
        changed = cuda.ops().penalised_logits(logits, changes, biases, seen, batch.drawn, batch.allowed)
    return SampledRows(cuda.ops().sample(logits, changed, rows, batch.is_random, batch.is_cut, batch.num_top))


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise: the argmax of log probabilities plus noise is a draw from them.

    Args:
        keys: int32 (rows, 2).
        ids: int32 (columns,), token ids; a token's noise does not depend on which others are asked for.

    Returns:
        fp32 (rows, columns), on the device of `ids`.

    Source: Gumbel-max trick; finaliser of MurmurHash3 (Appleby, public domain), applied twice.
    """
    if cuda.runs_on(ids.device, torch.float32):
        return cuda.ops().gumbel(keys, ids)[1]
    return reference_sampling.gumbel(keys, ids)


def _on_device(batch: SamplingBatch, device: torch.device) -> list[torch.Tensor]:
    """Return the batch's four arrays as int32 (length, words of a record), by one copy."""
    arrays = [batch.rows, batch.changes, batch.biases, batch.seen]
    words = torch.from_numpy(np.concatenate([np.ascontiguousarray(array).view(np.int32) for array in arrays]))
    pieces = on_device(words, device).split([len(array) * (array.itemsize // 4) for array in arrays])
    return [piece.view(len(array), array.itemsize // 4) for piece, array in zip(pieces, arrays, strict=True)]
