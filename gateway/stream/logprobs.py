"""Gives log probabilities their tokens' text and bytes.

Next: choice.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from gateway.processor.tokenizer import Tokenizer


class TokenLogprob(Protocol):
    """A token with its log probability; tessera.v1.TokenLogprob is one."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float


class Logprob(Protocol):
    """The log probabilities of one generated token; tessera.v1.Logprob is one."""

    @property
    def chosen(self) -> TokenLogprob:
        """The token that was drawn."""
        ...

    @property
    def top(self) -> Iterable[TokenLogprob]:
        """The likeliest tokens."""
        ...


def name_tokens(entry: Logprob, tokenizer: Tokenizer) -> None:
    """Fill in `token` and `token_bytes`, in place, where `token_id` and `logprob` are set."""
    for token in (entry.chosen, *entry.top):
        token.token_bytes = tokenizer.token_bytes(token.token_id)
        token.token = token.token_bytes.decode("utf-8", "replace")
