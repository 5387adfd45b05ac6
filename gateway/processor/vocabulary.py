"""Builds a byte-level BPE from vocab.json and merges.txt, for checkpoints that come without tokenizer.json.

Those two files do not say how text is cut before merging; that is known of a tokenizer class, and of no other.

Next: tokenizer.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from gateway.processor.byte_level import token_to_bytes
from tessera.errors import FailedPrecondition

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PATTERNS = {
    "Qwen2Tokenizer": _QWEN2,
    "Qwen3_5Tokenizer": _QWEN3_5,
    "InternS1Tokenizer": _QWEN2,
}
"""How a tokenizer class cuts text. Source: the class of transformers 5.23; InternS1-Pro's released remote code."""
_DOMAIN_CLASS = "InternS1Tokenizer"
_DOMAIN_PIECE = re.compile(r"<\|(?:SMILES|PROT|XNA)_(.+)\|>", re.DOTALL)


def load_vocabulary(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Return a tokenizer of vocab.json and merges.txt, its added tokens at the ids that the files give them.

    Args:
        path: the checkpoint.
        config: its tokenizer_config.json.

    Raises:
        FailedPrecondition: a file is missing or cannot be read, or the tokenizer's class is not known.
    """
    files = path / "vocab.json", path / "merges.txt"
    if not all(file.is_file() for file in files):
        raise FailedPrecondition(
            "The checkpoint has no tokenizer.json, nor vocab.json and merges.txt.", reason="TOKENIZER_MISSING"
        )
    name = tokenizer_class(config)
    if name not in _PATTERNS:
        raise FailedPrecondition(
            f"The checkpoint has no tokenizer.json, which its tokenizer class {name or '(none)'} needs; vocab.json and "
            f"merges.txt suffice for {', '.join(sorted(_PATTERNS))}.",
            reason="TOKENIZER_MISSING",
        )
    try:
        vocab: dict[str, int] = json.loads(files[0].read_text(encoding="utf-8"))
        # the ids of added tokens lie in holes of the vocabulary, which only tokenizer_config.json fills
        vocab |= {entry["content"]: int(i) for i, entry in (config.get("added_tokens_decoder") or {}).items()}
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=_read_merges(files[1])))
    except Exception as error:  # the library raises bare Exception for merges that the vocabulary lacks
        raise FailedPrecondition(
            f"vocab.json and merges.txt cannot be read: {error}", reason="TOKENIZER_INVALID"
        ) from error
    inner.normalizer = normalizers.NFC()
    if name == _DOMAIN_CLASS:  # whose other vocabularies write a blank so
        inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("▁", " ")])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def domain_pieces(config: Mapping[str, Any], vocab: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of the ids that belong to a domain's own vocabulary: SMILES, proteins, DNA and RNA.

    InternS1-Pro's tokenizer keeps them in vocab.json under names such as "<|SMILES_cc|>". Text is never encoded with
    them here, but what the model writes with them is decoded.

    Args:
        config: tokenizer_config.json.
        vocab: id by name.
    """
    if tokenizer_class(config) != _DOMAIN_CLASS:
        return {}
    matches = ((_DOMAIN_PIECE.fullmatch(name), token_id) for name, token_id in vocab.items())
    return {token_id: token_to_bytes(match[1].replace("▁", "Ġ")) for match, token_id in matches if match}


def tokenizer_class(config: Mapping[str, Any]) -> str:
    """Return the name of a tokenizer's class, without the suffix of a fast variant; empty where there is none."""
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _read_merges(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    pairs = (line.rstrip("\r").split(" ") for line in lines[first:])
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
