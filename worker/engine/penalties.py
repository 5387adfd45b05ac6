"""How often a sequence has seen each token, and what its biases and penalties change by that.

Next: worker/engine/sampler.py
"""

import numpy as np

from tessera_kernels.sampling import CHANGE, TOKEN_VALUE
from worker.engine.sequence import Sequence

_WORD = np.dtype("<i8")  # as wide as TOKEN_VALUE: numpy joins arrays of records slowly


class LogitChanges:
    """A sequence's biases, and the different tokens that its penalties are about; grows with it.

    Frequency and presence penalties are about what was generated, repetition penalties about the prompt's tokens too.
    Prompt tokens inside items' ranges are left out: they stand for pictures.

    Args:
        sequence: whose tokens.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.biases = np.array(list(sequence.params.logit_bias), TOKEN_VALUE)
        seen = _words(sequence) if sequence.params.repetition_penalty != 1.0 else np.zeros(0, np.int64)
        self._num_seen = len(seen)
        self._entries = np.zeros(len(seen) + 64, TOKEN_VALUE)
        self._entries["token"][: len(seen)] = seen
        self._slots = {token: slot for slot, token in enumerate(seen.tolist())}
        self._num_counted = sequence.num_prompt

    @property
    def seen(self) -> np.ndarray:
        """Different tokens, each with how often it was generated: TOKEN_VALUE."""
        return self._entries[: self._num_seen]

    def update(self, token_ids: list[int], num_known: int) -> None:
        """Count the tokens that have come since the last time.

        Args:
            token_ids: of the sequence.
            num_known: how many of them are known.
        """
        for token in token_ids[self._num_counted : num_known]:
            slot = self._slots.setdefault(token, self._num_seen)
            if slot == self._num_seen:
                if slot == len(self._entries):
                    self._entries = np.concatenate([self._entries, np.zeros(slot, TOKEN_VALUE)])
                self._entries["token"][slot] = token
                self._num_seen += 1
            self._entries["value"][slot] += 1
        self._num_counted = num_known


def changes_of(rows: list[tuple[int, Sequence]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the changes, biases and seen tokens of a SamplingBatch.

    Args:
        rows: (row of the logits, sequence) of those that have biases or penalties, at least one.
    """
    changes = np.zeros(len(rows), CHANGE)
    params = [sequence.params for _, sequence in rows]
    counted = [_counted(sequence) for _, sequence in rows]
    changes["source"] = [row for row, _ in rows]
    changes["repetition"] = [p.repetition_penalty for p in params]
    changes["frequency"] = [p.frequency_penalty for p in params]
    changes["presence"] = [p.presence_penalty for p in params]
    changes["drawn"] = [sequence.pending if sequence.params.has_penalties else -1 for _, sequence in rows]
    joined = []
    for name, lists in (("bias", [one.biases for one in counted]), ("seen", [one.seen for one in counted])):
        ends = np.cumsum([len(one) for one in lists])
        changes[f"{name}_end"] = ends
        changes[f"{name}_begin"][1:] = ends[:-1]
        joined.append(np.concatenate([one.view(_WORD) for one in lists]).view(TOKEN_VALUE))
    return changes, joined[0], joined[1]


def _counted(sequence: Sequence) -> LogitChanges:
    """Return what changes a sequence's logits, all its known tokens counted."""
    changes = sequence.logit_changes
    if changes is None:
        changes = sequence.logit_changes = LogitChanges(sequence)
    if sequence.params.has_penalties:
        changes.update(sequence.token_ids, len(sequence.token_ids) - (sequence.pending >= 0))
    return changes


def _words(sequence: Sequence) -> np.ndarray:
    """Return the different tokens of the prompt that are no placeholders."""
    prompt = np.array(sequence.group.prompt_ids, np.int64)
    is_text = np.ones(len(prompt), bool)
    for item in sequence.items:
        for span in item.ranges:
            is_text[span.offset : span.end] = False
    return np.unique(prompt[is_text])
