"""From logits to tokens: each sequence's parameters become one record, and `tessera_kernels.sampling` draws.

Next: kernels/tessera_kernels/sampling.py
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import record_function

from tessera_kernels import sampling
from tessera_kernels.sampling import ROW, SampledRows, SamplingBatch
from worker.engine.noise import row_key
from worker.engine.output import Logprob, TokenLogprob
from worker.engine.penalties import changes_of
from worker.engine.schedule import Chunk
from worker.engine.sequence import PENDING, Sequence, Status

Rows = list[tuple[int, Sequence]]
"""(Row of the logits, sequence); choices that fork share a row."""


class Draw(NamedTuple):
    """What a row gave."""

    token_id: int
    logprob: Logprob | None = None


def rows_to_sample(chunks: Iterable[Chunk], seats: int) -> Rows:
    """Return (row of the logits, sequence) for all that draw a token.

    Args:
        chunks: of the step.
        seats: how many forks may draw from their leads' rows; the others will have to compute the prompt again.
    """
    rows: Rows = []
    number = 0
    for chunk in chunks:
        if chunk.samples:
            rows.append((number, chunk.sequence))
            if chunk.sequence.forks:
                seated = chunk.sequence.forks[:seats]
                rows += [(number, sequence) for sequence in seated]
                seats -= len(seated)
            number += 1
    return rows


class Flight(NamedTuple):
    """Draws on their way from the device.

    Args:
        sampled: what was drawn.
        rows: for whom.
    """

    sampled: SampledRows
    rows: Rows

    def take_off(self) -> "Flight":
        """Give each sequence that has not ended meanwhile its token, whatever it is."""
        for number, (_, sequence) in enumerate(self.rows):
            if sequence.status is not Status.FINISHED:
                sequence.token_ids.append(PENDING)
                sequence.pending = number
        return self


class Sampler:
    """Draws the next token of many sequences at once; holds no state."""

    def sample(self, logits: torch.Tensor, rows: Rows) -> list[Draw]:
        """Return one draw for each row.

        Args:
            logits: (num_logits, vocab_size), as the model gave them; not changed.
            rows: what to draw.
        """
        if not rows:
            return []
        return self.finish(self.start(logits, rows), rows)

    @torch.inference_mode()
    def start(self, logits: torch.Tensor, rows: Rows, drawn: SampledRows | None = None) -> SampledRows:
        """Begin to draw for at least one row; the device is not waited for.

        Args:
            logits: (num_logits, vocab_size), as the model gave them; not changed.
            rows: what to draw.
            drawn: the step before's draws, where pending tokens stand.
        """
        with record_function("sample"):
            return sampling.sample(logits, batch_of(rows, drawn))

    def finish(self, sampled: SampledRows, rows: Rows) -> list[Draw]:
        """Wait for what was begun, and return it."""
        drawn = sampled.fetch()
        draws = [Draw(token) for token in drawn.tokens]
        for number, (_, sequence) in enumerate(rows if drawn.logprobs else ()):
            if sequence.params.logprobs:
                chosen = TokenLogprob(drawn.tokens[number], drawn.logprobs[number])
                top = zip(drawn.top_tokens[number], drawn.top_logprobs[number], strict=True)
                best = tuple(TokenLogprob(*pair) for pair in top)[: sequence.params.top_logprobs]
                draws[number] = Draw(drawn.tokens[number], Logprob(chosen, best))
        return draws


def batch_of(rows: Rows, drawn: SampledRows | None = None) -> SamplingBatch:
    """Return what the kernels are told of the sequences' parameters; see `Sampler.start`."""
    sources = [row for row, _ in rows]
    params = [sequence.params for _, sequence in rows]
    if all(p.is_plain for p in params):
        return SamplingBatch.greedy(sources)
    records = np.zeros(len(rows), ROW)
    records["source"] = sources
    records["temperature"] = [p.temperature for p in params]
    records["top_k"] = [p.top_k for p in params]
    records["top_p"] = [p.top_p for p in params]
    records["reach"] = [_reach(p.min_p) for p in params]
    records["num_top"] = [p.top_logprobs if p.logprobs else -1 for p in params]
    records["key"] = [
        (0, 0) if sequence.params.greedy else row_key(sequence.params.seed, sequence.choice, sequence.num_tokens)
        for _, sequence in rows
    ]
    changed = [number for number, p in enumerate(params) if p.has_penalties or p.logit_bias]
    records["changed"] = -1
    if not changed:
        return SamplingBatch(records)
    records["changed"][changed] = np.arange(len(changed))
    changes = changes_of([rows[number] for number in changed])
    return SamplingBatch(records, *changes, drawn=None if drawn is None else drawn.words)


@lru_cache(maxsize=1024)
def _reach(min_p: float) -> float:
    """Return how far below the likeliest token's a score may lie, in fp32: log(0) = -inf keeps all."""
    return -torch.tensor(min_p, dtype=torch.float32).log().item()
