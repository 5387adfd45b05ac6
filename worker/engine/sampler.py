"""From logits to tokens: bias, penalties, temperature, top-k, top-p, min-p; log probabilities of the raw logits.

Next: worker/engine/engine.py
"""

from typing import NamedTuple

import numpy as np
import torch

from tessera_kernels import invariance
from worker.engine.noise import gumbel, row_key
from worker.engine.output import Logprob, TokenLogprob
from worker.engine.penalties import apply_penalties
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import Sequence

# How many of the likeliest tokens are sorted. It depends on a row's own parameters alone, never on its neighbours.
_SORTED_FEW = 64
_SORTED_MANY = 1024


class Draw(NamedTuple):
    """What a row gave."""

    token_id: int
    logprob: Logprob | None = None


class Sampler:
    """Draws the next token of many sequences at once; holds no state."""

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, rows: list[tuple[int, Sequence]]) -> list[Draw]:
        """Return one draw for each row.

        Args:
            logits: fp32 (num_logits, vocab_size), as the model gave them; not changed.
            rows: (row of `logits`, sequence); choices that fork share a row.
        """
        if not rows:
            return []
        if all(sequence.params.is_plain for _, sequence in rows):
            likeliest = _likeliest(logits).tolist()
            return [Draw(likeliest[row]) for row, _ in rows]
        raw = logits[torch.tensor([row for row, _ in rows], device=logits.device)]
        sequences = [sequence for _, sequence in rows]
        scores = _changed(raw, sequences)
        tokens = _likeliest(scores)
        random = [number for number, sequence in enumerate(sequences) if not sequence.params.greedy]
        if random:
            index = torch.tensor(random, device=logits.device)
            tokens[index] = _draw(scores[index], [sequences[number] for number in random])
        logprobs = _logprobs(raw, tokens, [sequence.params for sequence in sequences])
        return [Draw(token, logprob) for token, logprob in zip(tokens.tolist(), logprobs, strict=True)]


def _changed(raw: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """Return the logits after bias and penalties; a copy where anything changes."""
    biases = [
        (row, token, bias) for row, sequence in enumerate(sequences) for token, bias in sequence.params.logit_bias
    ]
    penalised = [(row, sequence) for row, sequence in enumerate(sequences) if sequence.params.has_penalties]
    if not biases and not penalised:
        return raw
    scores = raw.clone()
    if biases:
        rows, tokens, values = zip(*biases, strict=True)
        index = (torch.tensor(rows, device=raw.device), torch.tensor(tokens, device=raw.device))
        scores.index_put_(index, torch.tensor(values, device=raw.device), accumulate=True)
    if penalised:
        apply_penalties(scores, penalised)
    return scores


def _draw(scores: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """Draw one token a row.

    Args:
        scores: fp32 (rows, vocab_size).
        sequences: whose rows; none is greedy.

    Returns:
        int64 (rows,).
    """
    params = [sequence.params for sequence in sequences]
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32, device=scores.device)
    # The largest score becomes 0, so that a tiny temperature overflows to -inf alone.
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / temperature[:, None]
    with invariance.one_thread():  # torch shares the sum of a single row out to threads, of several it does not
        least = _thresholds(scaled, params) if any(p.has_filter for p in params) else None
    keys = [row_key(s.params.seed, s.choice, s.num_tokens) for s in sequences]
    return _race(scaled, keys, least)


def _likeliest(scores: torch.Tensor) -> torch.Tensor:
    """Return each row's argmax, the lowest id of equals; numpy's is ten times as fast as torch's on a CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.asarray(scores.numpy().argmax(axis=-1)))
    return scores.argmax(dim=-1)


def _race(scaled: torch.Tensor, keys: list[tuple[int, int]], least: torch.Tensor | None) -> torch.Tensor:
    """Return the token of each row whose score plus noise is largest, among those of the least score or above.

    On the CPU noise is made for those tokens alone; elsewhere for all, since counting them would stall the device.
    """
    ids = torch.arange(scaled.shape[-1], dtype=torch.int32, device=scaled.device)
    if scaled.device.type != "cpu":
        if least is not None:
            scaled = scaled.masked_fill(scaled < least[:, None], float("-inf"))
        return (scaled + gumbel(keys, ids)).argmax(dim=-1)
    tokens = []
    for row, key in enumerate(keys):
        values, kept = scaled[row], ids
        if least is not None:
            kept = torch.from_numpy(np.flatnonzero(values.numpy() >= least[row].item()).astype(np.int32))
            values = values[kept]
        tokens.append(int(kept[int((values + gumbel([key], kept)[0]).argmax())]))
    return torch.tensor(tokens)


def _thresholds(scaled: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    """Return the least score that a token needs, for each row; ties at the threshold are all kept.

    Args:
        scaled: fp32 (rows, vocab_size), the largest of each row 0.
        params: one for each row.

    Returns:
        fp32 (rows,).
    """
    vocab_size = scaled.shape[-1]
    min_p = torch.tensor([p.min_p for p in params], dtype=torch.float32, device=scaled.device)
    least = min_p.log()  # log(0) = -inf keeps all
    groups: dict[int, list[int]] = {}
    for row, p in enumerate(params):
        if p.top_p < 1.0 or 0 < p.top_k < vocab_size:
            groups.setdefault(_num_sorted(p.top_k, vocab_size), []).append(row)
    for count, rows in groups.items():
        index = torch.tensor(rows, device=scaled.device)
        chosen = [params[row] for row in rows]
        limit, enough = _nucleus(scaled[index], chosen, count)
        lacking = [] if count == vocab_size else [n for n, fits in enumerate(enough.tolist()) if not fits]
        if lacking:
            again = torch.tensor(lacking, device=scaled.device)
            limit[again], _ = _nucleus(scaled[index[again]], [chosen[n] for n in lacking], vocab_size)
        least[index] = torch.maximum(least[index], limit)
    return least


def _num_sorted(top_k: int, vocab_size: int) -> int:
    if 0 < top_k <= _SORTED_FEW:
        return min(_SORTED_FEW, vocab_size)
    return min(_SORTED_MANY, vocab_size) if top_k <= _SORTED_MANY else vocab_size


def _nucleus(scaled: torch.Tensor, params: list[SamplingParams], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the score of the last token that top-k and then top-p keep.

    Args:
        scaled: fp32 (rows, vocab_size).
        params: one for each row.
        count: how many of the likeliest tokens to sort.

    Returns:
        fp32 (rows,), and bool (rows,): whether the sorted tokens were enough to know it.
    """
    values = _largest(scaled, count)
    top_k = torch.tensor([p.top_k or scaled.shape[-1] for p in params], device=scaled.device)[:, None]
    top_p = torch.tensor([p.top_p for p in params], dtype=torch.float32, device=scaled.device)[:, None]
    inside = torch.arange(count, device=scaled.device) < top_k
    mass = values.exp() * inside
    # Top-p counts what top-k has left; without top-k, the whole vocabulary.
    total = mass.sum(dim=-1, keepdim=True)
    if not all(0 < p.top_k <= count for p in params):
        total = torch.where(top_k <= count, total, scaled.exp().sum(dim=-1, keepdim=True))
    wanted = torch.where(top_p < 1.0, top_p * total, float("inf"))
    until = mass.cumsum(dim=-1)
    kept = inside & (until - mass < wanted)
    last = kept.sum(dim=-1, keepdim=True).clamp(min=1) - 1
    enough = (top_k <= count) | (until[:, -1:] >= wanted)
    return values.gather(1, last).squeeze(1), enough.squeeze(1)


def _largest(scaled: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest scores of each row, descending; where all are wanted, numpy sorts them fastest on a CPU."""
    if count == scaled.shape[-1] and scaled.device.type == "cpu":
        return torch.from_numpy(np.sort(scaled.numpy(), axis=-1)[:, ::-1].copy())
    return scaled.topk(count, dim=-1).values


def _logprobs(raw: torch.Tensor, tokens: torch.Tensor, params: list[SamplingParams]) -> list[Logprob | None]:
    """Return the raw log probabilities of the rows that ask for them."""
    result: list[Logprob | None] = [None] * len(params)
    rows = [row for row, p in enumerate(params) if p.logprobs]
    if not rows:
        return result
    index = torch.tensor(rows, device=raw.device)
    normal = raw[index].log_softmax(dim=-1)
    chosen = normal.gather(1, tokens[index][:, None]).squeeze(1).tolist()
    most = max(params[row].top_logprobs for row in rows)
    top = normal.topk(most, dim=-1) if most else None
    values, ids = (top.values.tolist(), top.indices.tolist()) if top else ([[]] * len(rows), [[]] * len(rows))
    drawn = tokens.tolist()
    for number, row in enumerate(rows):
        pairs = zip(ids[number], values[number], strict=True)
        best = tuple(TokenLogprob(token, value) for token, value in pairs)[: params[row].top_logprobs]
        result[row] = Logprob(TokenLogprob(drawn[row], chosen[number]), best)
    return result
