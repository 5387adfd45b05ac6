"""Draws of tokens in plain torch: the oracle of the kernels, and the sampler of CPU workers.

Order: token mask, bias, penalties (repetition, frequency, presence), temperature, top-k, top-p, min-p; log
probabilities are of the raw logits. Random numbers are a pure function of a row's key and the token's id.

Next: kernels/tessera_kernels/sampling.py
"""

import numpy as np
import torch

from tessera_kernels import invariance
from tessera_kernels.sampling_batch import TOKEN_VALUE, SamplingBatch

# How many of the likeliest tokens are sorted. It depends on a row's own parameters alone, never on its neighbours.
_SORTED_FEW = 64
_SORTED_MANY = 1024

_WEYL = -1640531527  # 0x9E3779B9 as int32: 2 ** 32 over the golden ratio
_MIX_1 = -2048144789  # 0x85EBCA6B and 0xC2B2AE35: the multipliers of MurmurHash3's finaliser
_MIX_2 = -1028477387
_BELOW_ONE = 1.0 - 2.0**-24


def gumbel_bits(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return 31 random bits for each key and id; keys: int32 (rows, 2), ids: int32 (columns,) -> int32.

    Source: finaliser of MurmurHash3 (Appleby, public domain), applied twice.
    """
    bits = ids * _WEYL + keys[:, :1]
    return _mix(_mix(bits) ^ keys[:, 1:]) & 0x7FFFFFFF


def _mix(bits: torch.Tensor) -> torch.Tensor:
    # The shift of an int32 is arithmetic: the masks make it logical.
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * _MIX_1
    bits = (bits ^ ((bits >> 13) & 0x7FFFF)) * _MIX_2
    return bits ^ ((bits >> 16) & 0xFFFF)


def gumbel(keys: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise, fp32 (rows, columns); see `sampling.gumbel`."""
    # Small values of u, which are the large noise, keep their relative precision.
    uniform = (gumbel_bits(keys, ids).to(torch.float32) + 0.5).mul_(2.0**-31).clamp_(max=_BELOW_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Return what `sampling.SampledRows.words` is; logits: (num_logits, vocab_size), not changed."""
    sources = _tensor(batch.rows["source"], logits).long()
    if batch.num_top < 0 and not batch.is_random and not len(batch.changes):
        return likeliest(logits)[sources].to(torch.int32)[:, None]
    raw = logits[sources].float()
    scores = _scores(logits, raw, batch)
    tokens = likeliest(scores)
    random = np.flatnonzero(batch.rows["temperature"])
    if len(random):
        index = _tensor(random, logits)
        tokens[index] = _draw(scores[index], batch.rows[random])
    return _words(raw, tokens, batch)


def _scores(logits: torch.Tensor, raw: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    if not len(batch.changes):
        return raw
    changed = penalised_logits(logits, batch)
    numbers = batch.rows["changed"]
    if np.array_equal(numbers, np.arange(len(changed))):
        return changed
    rows = np.flatnonzero(numbers >= 0)
    return raw.index_copy(0, _tensor(rows, raw), changed[_tensor(numbers[rows], raw).long()])


def _seen_and_drawn(batch: SamplingBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return begins and ends of the changes' seen tokens, and these: what an earlier step has drawn is counted too."""
    lists = [batch.seen[begin:end].copy() for begin, end in batch.changes[["seen_begin", "seen_end"]].tolist()]
    if batch.drawn is not None:
        tokens = batch.drawn[:, 0].cpu().numpy()
        for number in np.flatnonzero(batch.changes["drawn"] >= 0):
            token = tokens[batch.changes["drawn"][number]]
            found = lists[number]["token"] == token
            lists[number]["value"][found] += 1
            if not found.any():
                lists[number] = np.append(lists[number], np.array([(token, 1)], TOKEN_VALUE))
    ends = np.cumsum([len(one) for one in lists])
    return ends - [len(one) for one in lists], ends, np.concatenate(lists)


def penalised_logits(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Return the logits of the batch's changes, fp32 (m, vocab_size)."""
    changes = batch.changes
    scores = logits[_tensor(changes["source"], logits).long()].float()
    if batch.allowed is not None:
        bits = batch.allowed[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device) & 1
        scores = scores.masked_fill(bits.flatten(1)[:, : scores.shape[1]] == 0, float("-inf"))
    index, bias = _entries(changes["bias_begin"], changes["bias_end"], batch.biases, scores)
    scores[index] += bias
    index, count = _entries(*_seen_and_drawn(batch), scores)
    values = scores[index]
    repetition, frequency, presence = (
        _tensor(changes[name], scores)[index[0]] for name in ("repetition", "frequency", "presence")
    )
    values = torch.where(values > 0, values / repetition, values * repetition)
    scores[index] = values - frequency * count - presence * (count > 0)
    return scores


def _entries(
    begin: np.ndarray, end: np.ndarray, entries: np.ndarray, like: torch.Tensor
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return (row, token) of each entry, and its value."""
    rows = np.repeat(np.arange(len(begin)), end - begin)
    chosen = np.concatenate([np.arange(b, e) for b, e in zip(begin, end, strict=True)])
    tokens, values = entries["token"][chosen], entries["value"][chosen]
    return (_tensor(rows, like), _tensor(tokens, like).long()), _tensor(values, like)


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)


def likeliest(scores: torch.Tensor) -> torch.Tensor:
    """Return each row's argmax, the lowest id of equals; numpy's is ten times as fast as torch's on a CPU."""
    if scores.device.type == "cpu" and scores.dtype is torch.float32:
        return torch.from_numpy(np.asarray(scores.numpy().argmax(axis=-1)))
    return scores.argmax(dim=-1)


def _draw(scores: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Return one token for each row, int64; scores: fp32 (n, vocab_size), rows: ROW (n,), none of them greedy."""
    temperature = _tensor(rows["temperature"], scores)
    # The largest score becomes 0, so that a tiny temperature overflows to -inf alone.
    scaled = (scores - scores.amax(dim=-1, keepdim=True)) / temperature[:, None]
    is_filtered = (rows["top_k"] > 0) | (rows["top_p"] < 1) | np.isfinite(rows["reach"])
    with invariance.one_thread():  # torch shares the sum of a single row out to threads, of several it does not
        least = thresholds(scaled, rows) if is_filtered.any() else None
    return _race(scaled, _tensor(rows["key"], scores), least)


def _race(scaled: torch.Tensor, keys: torch.Tensor, least: torch.Tensor | None) -> torch.Tensor:
    """Return the token of each row whose score plus noise is largest, among those of the least score or above.

    On the CPU noise is made for those tokens alone; elsewhere for all, since counting them would stall the device.
    """
    ids = torch.arange(scaled.shape[-1], dtype=torch.int32, device=scaled.device)
    if scaled.device.type != "cpu":
        if least is not None:
            scaled = scaled.masked_fill(scaled < least[:, None], float("-inf"))
        return (scaled + gumbel(keys, ids)).argmax(dim=-1)
    tokens = []
    for row in range(len(keys)):
        values, kept = scaled[row], ids
        if least is not None:
            kept = torch.from_numpy(np.flatnonzero(values.numpy() >= least[row].item()).astype(np.int32))
            values = values[kept]
        tokens.append(int(kept[int((values + gumbel(keys[row : row + 1], kept)[0]).argmax())]))
    return torch.tensor(tokens)


def thresholds(scaled: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Return the least score that a token needs, for each row; ties at the threshold are all kept.

    Args:
        scaled: fp32 (n, vocab_size), the largest of each row 0.
        rows: ROW (n,).

    Returns:
        fp32 (n,).
    """
    vocab_size = scaled.shape[-1]
    least = -_tensor(rows["reach"], scaled)
    groups: dict[int, list[int]] = {}
    for row, (top_k, top_p) in enumerate(zip(rows["top_k"].tolist(), rows["top_p"].tolist(), strict=True)):
        if top_p < 1.0 or 0 < top_k < vocab_size:
            groups.setdefault(_num_sorted(top_k, vocab_size), []).append(row)
    for count, numbers in groups.items():
        index = torch.tensor(numbers, device=scaled.device)
        chosen = rows[numbers]
        limit, enough = _nucleus(scaled[index], chosen, count)
        lacking = [] if count == vocab_size else [n for n, fits in enumerate(enough.tolist()) if not fits]
        if lacking:
            again = torch.tensor(lacking, device=scaled.device)
            limit[again], _ = _nucleus(scaled[index[again]], chosen[lacking], vocab_size)
        least[index] = torch.maximum(least[index], limit)
    return least


def _num_sorted(top_k: int, vocab_size: int) -> int:
    if 0 < top_k <= _SORTED_FEW:
        return min(_SORTED_FEW, vocab_size)
    return min(_SORTED_MANY, vocab_size) if top_k <= _SORTED_MANY else vocab_size


def _nucleus(scaled: torch.Tensor, rows: np.ndarray, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the score of the last token that top-k and then top-p keep.

    Args:
        scaled: fp32 (n, vocab_size).
        rows: ROW (n,).
        count: how many of the likeliest tokens to sort.

    Returns:
        fp32 (n,), and bool (n,): whether the sorted tokens were enough to know it.
    """
    values = _largest(scaled, count)
    top_k = _tensor(np.where(rows["top_k"] > 0, rows["top_k"], scaled.shape[-1]), scaled)[:, None]
    top_p = _tensor(rows["top_p"], scaled)[:, None]
    inside = torch.arange(count, device=scaled.device) < top_k
    mass = values.exp() * inside
    # Top-p counts what top-k has left; without top-k, the whole vocabulary.
    total = mass.sum(dim=-1, keepdim=True)
    if not ((rows["top_k"] > 0) & (rows["top_k"] <= count)).all():
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


def _words(raw: torch.Tensor, tokens: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Return the tokens with the raw log probabilities of the rows that ask for them."""
    num_top = batch.num_top
    if num_top < 0:
        return tokens.to(torch.int32)[:, None]
    words = torch.zeros(len(tokens), 2 + 2 * num_top, dtype=torch.int32, device=raw.device)
    words[:, 0] = tokens
    words[:, 2 : 2 + num_top] = -1
    index = _tensor(np.flatnonzero(batch.rows["num_top"] >= 0), raw)
    normal = raw[index].log_softmax(dim=-1)
    words[index, 1] = normal.gather(1, tokens[index][:, None]).squeeze(1).view(torch.int32)
    if num_top:
        top = normal.topk(num_top, dim=-1)
        words[index, 2 : 2 + num_top] = top.indices.to(torch.int32)
        words[index, 2 + num_top :] = top.values.view(torch.int32)
    return words
