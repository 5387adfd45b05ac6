"""How often a sequence has seen each token, and what its biases and penalties change by that.

Next: worker/engine/sampler.py
"""

import numpy as np

from tessera_kernels.sampling import CHANGE, TOKEN_VALUE
from worker.engine.sequence import Sequence


class TokenCounts:
    """The different tokens of a sequence and how often each was generated; grows with it.

    Prompt tokens inside items' ranges are left out: they stand for pictures.

    Args:
        sequence: whose tokens.
    """

    def __init__(self, sequence: Sequence) -> None:
        prompt = np.array(sequence.group.prompt_ids, np.int64)
        is_text = np.ones(len(prompt), bool)
        for item in sequence.items:
            for span in item.ranges:
                is_text[span.offset : span.end] = False
        seen = np.unique(prompt[is_text])
        self._num_seen = len(seen)
        self._entries = np.zeros(len(seen) + 64, TOKEN_VALUE)
        self._entries["token"][: len(seen)] = seen
        self._slots = {token: slot for slot, token in enumerate(seen.tolist())}
        self._num_counted = sequence.num_prompt

    @property
    def seen(self) -> np.ndarray:
        """Different tokens, each with how often it was generated: TOKEN_VALUE."""
        return self._entries[: self._num_seen]

    @property
    def generated(self) -> np.ndarray:
        """How often each was generated, fp32."""
        return self.seen["value"]

    def update(self, token_ids: list[int]) -> None:
        """Count the tokens that have come since the last time.

        Args:
            token_ids: all known tokens of the sequence.
        """
        for token in token_ids[self._num_counted :]:
            slot = self._slots.setdefault(token, self._num_seen)
            if slot == self._num_seen:
                if slot == len(self._entries):
                    self._entries = np.concatenate([self._entries, np.zeros(slot, TOKEN_VALUE)])
                self._entries["token"][slot] = token
                self._num_seen += 1
            self._entries["value"][slot] += 1
        self._num_counted = len(token_ids)


def changes_of(rows: list[tuple[int, Sequence]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the changes, biases and seen tokens of a SamplingBatch.

    Args:
        rows: (row of the logits, sequence) of those that have biases or penalties, at least one.
    """
    changes = np.zeros(len(rows), CHANGE)
    params = [sequence.params for _, sequence in rows]
    biases = [np.array(list(p.logit_bias), TOKEN_VALUE) for p in params]
    seen = [_seen_by(sequence) for _, sequence in rows]
    changes["source"] = [row for row, _ in rows]
    changes["repetition"] = [p.repetition_penalty for p in params]
    changes["frequency"] = [p.frequency_penalty for p in params]
    changes["presence"] = [p.presence_penalty for p in params]
    changes["drawn"] = [sequence.pending if sequence.params.has_penalties else -1 for _, sequence in rows]
    for name, lists in (("bias", biases), ("seen", seen)):
        ends = np.cumsum([len(one) for one in lists])
        changes[f"{name}_end"] = ends
        changes[f"{name}_begin"][1:] = ends[:-1]
    return changes, np.concatenate(biases), np.concatenate(seen)


def _seen_by(sequence: Sequence) -> np.ndarray:
    """Return the tokens that the sequence's penalties are about."""
    if not sequence.params.has_penalties:
        return np.zeros(0, TOKEN_VALUE)
    counts = sequence.token_counts
    if counts is None:
        counts = sequence.token_counts = TokenCounts(sequence)
    counts.update(sequence.known_ids)
    if sequence.params.repetition_penalty != 1.0:
        return counts.seen
    return counts.seen[counts.generated > 0]  # the others are about what was generated
