"""How often a sequence has seen each token, and the penalties that follow from it.

Next: worker/engine/sampler.py
"""

import numpy as np
import torch

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
        self._ids = np.zeros(len(seen) + 64, np.int64)
        self._ids[: len(seen)] = seen
        self._generated = np.zeros(len(self._ids), np.float32)
        self._slots = {token: slot for slot, token in enumerate(seen.tolist())}
        self._num_counted = sequence.num_prompt

    @property
    def ids(self) -> np.ndarray:
        """Different tokens, int64."""
        return self._ids[: self._num_seen]

    @property
    def generated(self) -> np.ndarray:
        """How often each was generated, fp32."""
        return self._generated[: self._num_seen]

    def update(self, token_ids: list[int]) -> None:
        """Count the tokens that have come since the last time.

        Args:
            token_ids: all tokens of the sequence.
        """
        for token in token_ids[self._num_counted :]:
            slot = self._slots.setdefault(token, self._num_seen)
            if slot == self._num_seen:
                if slot == len(self._ids):
                    self._ids = np.resize(self._ids, 2 * slot)
                    self._generated = np.concatenate([self._generated, np.zeros(slot, np.float32)])
                self._ids[slot] = token
                self._num_seen += 1
            self._generated[slot] += 1
        self._num_counted = len(token_ids)


def apply_penalties(scores: torch.Tensor, sequences: list[tuple[int, Sequence]]) -> None:
    """Change the logits of seen tokens in place: repetition first, then frequency and presence.

    Args:
        scores: fp32 (rows, vocab_size).
        sequences: (row, sequence) of those that have penalties.
    """
    rows, ids, generated, knobs = [], [], [], []
    for row, sequence in sequences:
        counts = sequence.token_counts
        if counts is None:
            counts = sequence.token_counts = TokenCounts(sequence)
        counts.update(sequence.token_ids)
        params, number = sequence.params, len(counts.ids)
        rows.append(np.full(number, row))
        ids.append(counts.ids)
        generated.append(counts.generated)
        one = np.array([params.repetition_penalty, params.frequency_penalty, params.presence_penalty], np.float32)
        knobs.append(np.broadcast_to(one[:, None], (3, number)))
    index = tuple(torch.from_numpy(np.concatenate(part)).to(scores.device) for part in (rows, ids))
    count = torch.from_numpy(np.concatenate(generated)).to(scores.device)
    repetition, frequency, presence = torch.from_numpy(np.concatenate(knobs, axis=1)).to(scores.device)
    values = scores[index]
    values = torch.where(values > 0, values / repetition, values * repetition)
    scores[index] = values - frequency * count - presence * (count > 0)
