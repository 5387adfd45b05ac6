"""When each token of each request came: what all runs of a model give back.

Next: contestants/hugging_face.py, contestants/engine.py, contestants/served_pair.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeline:
    """One run of some requests that started together.

    Attributes:
        arrivals: for each request, seconds from the start to each of its tokens, ascending.
        first_ids: for each request, its first token id, to see that two sides did the same.
    """

    arrivals: tuple[tuple[float, ...], ...]
    first_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Generated tokens of all requests."""
        return sum(len(times) for times in self.arrivals)

    @property
    def wall_s(self) -> float:
        """Seconds to the last token."""
        return max(times[-1] for times in self.arrivals)

    @property
    def first_token_s(self) -> float:
        """Seconds until every request has its first token."""
        return max(times[0] for times in self.arrivals)

    @property
    def total_tokens_s(self) -> float:
        """Tokens over wall time."""
        return self.num_tokens / self.wall_s

    @property
    def decode_tokens_s(self) -> float:
        """Tokens a second while all requests decode: from the last one's first token to the first one's last."""
        start, end = self.first_token_s, min(times[-1] for times in self.arrivals)
        assert end > start, "requests must be long enough to decode together"
        return sum(sum(start < time <= end for time in times) for times in self.arrivals) / (end - start)


def agreement(ours: list[Timeline], other: list[Timeline]) -> str:
    """Return how many requests began with the same token on both sides, as a note.

    Args:
        ours: of each round.
        other: of the same rounds.
    """
    pairs = [pair for a, b in zip(ours, other, strict=True) for pair in zip(a.first_ids, b.first_ids, strict=True)]
    return f"first tokens equal: {sum(a == b for a, b in pairs)}/{len(pairs)}"
