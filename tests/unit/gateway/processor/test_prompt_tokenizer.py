"""Tokenizer: what becomes a special token, what stays text, and the bytes of tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition
from tests.tiny_models import SPECIAL_TOKENS
from tests.unit.gateway.processor.prompt_fixtures import tokenizer, write_checkpoint_tokenizer

TEXTS = st.lists(st.text(max_size=8) | st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "<|im_"]), max_size=8).map("".join)


@given(TEXTS)
def test_text_never_becomes_a_special_token_and_comes_back_whole(text: str) -> None:
    """Whatever is encoded as text has no special id and decodes to itself (in NFC, the normal form of the family)."""
    import unicodedata

    ids = tokenizer().encode(text, allow_special=False)
    assert not tokenizer().special_ids.intersection(ids)
    assert tokenizer().decode(ids) == unicodedata.normalize("NFC", text)


@given(TEXTS)
def test_pieces_join_to_the_text(text: str) -> None:
    """Cutting at special tokens loses nothing, and no plain piece holds one."""
    spelling = {token_id: token for token, token_id in tokenizer().special_tokens.items()}
    pieces = tokenizer().split_special(text)
    assert "".join(p if isinstance(p, str) else spelling[p] for p in pieces) == text
    assert not any(token in p for p in pieces if isinstance(p, str) for token in SPECIAL_TOKENS)


def test_allowed_special_tokens_become_their_ids() -> None:
    """With allow_special, a spelled-out special token is one id."""
    start, end = (tokenizer().special_tokens[t] for t in ("<|im_start|>", "<|im_end|>"))
    ids = tokenizer().encode("<|im_start|>a<|im_end|>", allow_special=True)
    assert (ids[0], ids[-1]) == (start, end)
    assert ids[1:-1] == tokenizer().encode("a", allow_special=False)


def test_long_text_encodes_as_short_text_does() -> None:
    """The way that long texts take gives the same ids."""
    text = "a red circle, <|im_end|> é\n" * 4000
    expected = tokenizer().encode(text[: len(text) // 4000 * 2], allow_special=False)
    ids = tokenizer().encode(text, allow_special=False)
    assert len(text) > 1 << 16
    assert ids == expected * 2000


def test_added_tokens_that_are_not_special_are_text_and_stay_one_token() -> None:
    """<think> is one token wherever it is spelled, and decoding shows it: so it is in Hugging Face's tokenizers."""
    ids = tokenizer().encode("<think>", allow_special=False)
    assert ids == [tokenizer().token_id("<think>")]
    assert tokenizer().decode(ids) == "<think>"


@given(st.lists(st.integers(0, 700), max_size=20))
def test_token_bytes_joined_are_the_decoded_text(ids: list[int]) -> None:
    """The bytes of tokens, special ones left out, are what the full decode reads."""
    plain = [token_id for token_id in ids if token_id not in tokenizer().special_ids]
    raw = b"".join(map(tokenizer().token_bytes, plain))
    assert raw.decode("utf-8", "replace") == tokenizer().decode(ids)


def test_an_id_without_a_token_has_no_bytes() -> None:
    """The model's vocabulary may be larger than the tokenizer's: such ids are silent."""
    assert tokenizer().token_bytes(639) == b""


def test_config_adds_tokens_and_names(tmp_path: Path) -> None:
    """tokenizer_config.json names the end token, adds tokens that tokenizer.json lacks, and flags special ones."""
    write_checkpoint_tokenizer(tmp_path)
    added = {"content": "<|late|>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": None,
        "added_tokens_decoder": {"9999": added | {"special": True}},
        "additional_special_tokens": ["<think>"],
        "image_token": "<|image_pad|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Tokenizer.from_dir(tmp_path)
    assert loaded.eos_id == loaded.special_tokens["<|im_end|>"]
    assert loaded.pad_id is None
    assert loaded.bos_id is None
    assert loaded.named_tokens == {"eos_token": "<|im_end|>", "image_token": "<|image_pad|>"}
    assert loaded.special_tokens["<|late|>"] == tokenizer().vocab_size
    assert "<think>" in loaded.special_tokens
    assert "</think>" not in loaded.special_tokens


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "TOKENIZER_MISSING"), ("{", "TOKENIZER_INVALID"), ('{"model": 3}', "TOKENIZER_INVALID")],
)
def test_a_missing_or_broken_tokenizer_fails_at_the_start(tmp_path: Path, content: str | None, reason: str) -> None:
    """A checkpoint without a readable tokenizer.json is refused by name."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FailedPrecondition) as caught:
        Tokenizer.from_dir(tmp_path)
    assert caught.value.reason == reason


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    """Incremental decoding needs tokens that are bytes."""
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FailedPrecondition) as caught:
        Tokenizer.from_dir(tmp_path)
    assert caught.value.reason == "TOKENIZER_UNSUPPORTED"


@pytest.mark.parametrize(("flag", "text"), [("lstrip", "a  <x>b"), ("rstrip", "a<x>  b")])
def test_special_tokens_take_white_space_along_where_they_say_so(flag: str, text: str) -> None:
    """A token with lstrip or rstrip swallows the white space on that side, as in `tokenizers`."""
    import tokenizers

    from tests.tiny_models import build_tokenizer

    inner = build_tokenizer()
    inner.add_special_tokens([tokenizers.AddedToken("<x>", special=True, normalized=False, **{flag: True})])
    expected = inner.encode(text, add_special_tokens=False).ids
    assert Tokenizer(inner).encode(text, allow_special=True) == expected
