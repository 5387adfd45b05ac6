"""Turns token ids into text as they come, never half a character.

Next: stop_strings.py.
"""

from __future__ import annotations

import codecs

from gateway.processor.tokenizer import Tokenizer


class Detokenizer:
    """One choice's text so far: its pieces joined equal the tokenizer's decode of all its ids, special ones left out.

    Bytes wait until their code point is whole. Bytes that can no longer become one turn into U+FFFD, as they do in
    the full decode; the rest of an unfinished one does so only in `finish`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that one more token completes."""
        if token_id in self._tokenizer.special_ids:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what was waiting when no more tokens come."""
        return self._decoder.decode(b"", final=True)
