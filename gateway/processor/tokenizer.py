"""The tokenizer of a checkpoint, without transformers: text to ids, ids to text and raw bytes.

One `tokenizers` instance encodes plain text and never matches a special token; special tokens become ids only where
`split_special` finds their spelling. So the caller decides for each piece of text whether it may hold any. Encoding
releases the interpreter lock and changes nothing here: long texts may go through `asyncio.to_thread`.

Next: chat_template.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from gateway.processor.byte_level import token_to_bytes
from gateway.processor.checkpoint_files import read_json
from gateway.processor.vocabulary import domain_pieces, load_vocabulary
from tessera.errors import FailedPrecondition

_LONG_CHARS = 1 << 16
_STANDARD_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Byte-level BPE with its special tokens.

    Args:
        inner: the vocabulary; changed so that it matches no special token.
        named_tokens: see below.
        pieces: bytes of the ids whose names in the vocabulary are not what they stand for.

    Attributes:
        vocab_size: number of ids, added tokens included.
        named_tokens: spelling by role, such as {"eos_token": "<|im_end|>"}; what a chat template may read.
        special_tokens: id by spelling.
        special_ids: ids that decoding leaves out.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        named_tokens: Mapping[str, str] | None = None,
        pieces: Mapping[int, bytes] | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True
        self._inner = inner
        self.named_tokens: Mapping[str, str] = dict(named_tokens or {})
        added = inner.get_added_tokens_decoder()
        self.special_tokens: Mapping[str, int] = {t.content: i for i, t in sorted(added.items()) if t.special}
        self.special_ids: frozenset[int] = frozenset(self.special_tokens.values())
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self._special_pattern = _special_pattern([t for t in added.values() if t.special])
        self._pieces = frozenset(pieces or ())
        self._bytes: dict[int, bytes] = dict(pieces or {})

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Load tokenizer.json (else vocab.json and merges.txt) and what tokenizer_config.json adds to it.

        Raises:
            FailedPrecondition: the files are missing, unreadable, or not byte-level.
        """
        path = Path(path)
        config = _read_config(path)
        file = path / "tokenizer.json"
        inner = _load_json(file) if file.is_file() else load_vocabulary(path, config)
        if not _is_byte_level(inner):
            raise FailedPrecondition("Only byte-level tokenizers are served.", reason="TOKENIZER_UNSUPPORTED")
        named = _named_tokens(config)
        _add_missing(inner, config)
        _make_special(inner, [*named.values(), *_extra_tokens(config)])
        return cls(inner, named, domain_pieces(config, inner.get_vocab()))

    def encode(self, text: str, *, allow_special: bool) -> list[int]:
        """Return the ids of `text`, nothing added before or after.

        Args:
            text: any string.
            allow_special: whether spelled-out special tokens become their ids; else they are encoded as text.
        """
        if not allow_special:
            if len(text) > _LONG_CHARS:  # without offsets, so the lock is held a fourth of the time afterwards
                return self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids
            return self._inner.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for piece in self.split_special(text):
            ids.extend([piece] if isinstance(piece, int) else self.encode(piece, allow_special=False))
        return ids

    def split_special(self, text: str) -> list[str | int]:
        """Return `text` cut at its special tokens: plain pieces (none empty) and special ids, in order."""
        pieces: list[str | int] = []
        start = 0
        for match in self._special_pattern.finditer(text):
            if match.start() > start:
                pieces.append(text[start : match.start()])
            pieces.append(self.special_tokens[match[match.lastindex or 0]])
            start = match.end()
        if start < len(text):
            pieces.append(text[start:])
        return pieces

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD, ids without a token nothing."""
        if not self._pieces.isdisjoint(ids):
            kept = (token_id for token_id in ids if not (skip_special and token_id in self.special_ids))
            return b"".join(map(self.token_bytes, kept)).decode(errors="replace")
        return self._inner.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the raw bytes of one token; empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._inner.id_to_token(token_id)
            known = self._bytes[token_id] = b"" if token is None else token_to_bytes(token)
        return known

    def token_id(self, token: str) -> int | None:
        """Return the id of a vocabulary entry or added token, None where there is none."""
        return self._inner.token_to_id(token)

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id of the tokenizer's end token; generation_config.json may name more."""
        return self._named_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token."""
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> int | None:
        token = self.named_tokens.get(name)
        return None if token is None else self.token_id(token)


def _special_pattern(tokens: Sequence[tokenizers.AddedToken]) -> re.Pattern[str]:
    """Match special tokens leftmost-longest, with the white space that some take along."""
    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    return re.compile("|".join(_token_pattern(token) for token in longest_first) or "(?!)")


def _token_pattern(token: tokenizers.AddedToken) -> str:
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    if token.lstrip or token.rstrip:
        # A group only where it is needed: without them the engine looks for what the spellings begin with.
        pattern = (r"\s*" if token.lstrip else "") + f"({pattern})" + (r"\s*" if token.rstrip else "")
    return pattern


def _load_json(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for an unreadable file
        raise FailedPrecondition(f"tokenizer.json cannot be read: {error}", reason="TOKENIZER_INVALID") from error


def _is_byte_level(inner: tokenizers.Tokenizer) -> bool:
    return "ByteLevel" in repr(inner.decoder)


def _read_config(path: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with special_tokens_map.json where that says nothing of a token.

    Raises:
        FailedPrecondition: one of them is not a JSON object.
    """
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config |= read_json(path / name)
    return config


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return the tokens that have a role: the standard ones first, then the family's, such as "image_token"."""
    names = [*_STANDARD_NAMES, *(name for name in config if name.endswith("_token") and name not in _STANDARD_NAMES)]
    named = {name: content for name in names if (content := _content(config.get(name))) is not None}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= {name: content for name, token in extra.items() if (content := _content(token)) is not None}
    return named


def _extra_tokens(config: dict[str, Any]) -> list[str]:
    lists = (config.get("extra_special_tokens"), config.get("additional_special_tokens"))
    tokens = [token for entry in lists if isinstance(entry, list) for token in entry]
    return [content for token in tokens if (content := _content(token)) is not None]


def _add_missing(inner: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Add the tokens that only tokenizer_config.json knows, in the order of their ids."""
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    decoder = config.get("added_tokens_decoder") or {}
    for _, entry in sorted(decoder.items(), key=lambda pair: int(pair[0])):
        if entry["content"] not in known:
            inner.add_tokens([tokenizers.AddedToken(**entry)])


def _make_special(inner: tokenizers.Tokenizer, contents: Sequence[str]) -> None:
    """Flag tokens as special, adding those that the tokenizer lacks."""
    added = {token.content: token for token in inner.get_added_tokens_decoder().values()}
    for content in dict.fromkeys(contents):
        token = added.get(content) or tokenizers.AddedToken(content, normalized=False)
        if not token.special:
            token.special = True
            inner.add_special_tokens([token])
