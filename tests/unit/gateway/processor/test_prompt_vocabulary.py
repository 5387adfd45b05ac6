"""A tokenizer of vocab.json and merges.txt: the ids that tokenizer.json gives, or a refusal that says why."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition
from tests.tiny_interns1_pro import DOMAIN_PIECES, build_intern_tokenizer, write_intern_tokenizer
from tests.tiny_models import CORPUS, EXTRA_TOKENS, SPECIAL_TOKENS

TEXTS = st.lists(
    st.text(max_size=12) | st.sampled_from([*SPECIAL_TOKENS, *EXTRA_TOKENS, *CORPUS, "<SMILES>", "<TS_CONTEXT>"])
).map("".join)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer files of an InternS1-Pro checkpoint."""
    path = tmp_path_factory.mktemp("tokenizer")
    write_intern_tokenizer(path, build_intern_tokenizer())
    return path


@pytest.fixture(scope="module")
def from_files(directory: Path) -> Tokenizer:
    """Built from vocab.json and merges.txt."""
    return Tokenizer.from_dir(directory)


@cache
def whole() -> Tokenizer:
    """The same vocabulary as the library holds it."""
    return Tokenizer(build_intern_tokenizer())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, allow_special=st.booleans())
def test_ids_are_those_of_tokenizer_json(from_files: Tokenizer, text: str, allow_special: bool) -> None:
    """Whichever files it comes in, a vocabulary gives the same ids, of added tokens too."""
    text = text.replace("▁", "")  # which the family's own tokenizer takes for a blank
    assert from_files.encode(text, allow_special=allow_special) == whole().encode(text, allow_special=allow_special)


def test_named_and_special_tokens_keep_their_ids(directory: Path, from_files: Tokenizer) -> None:
    """Added tokens lie in holes of vocab.json and keep the ids that tokenizer_config.json gives them."""
    added = json.loads((directory / "added_tokens.json").read_text())
    assert {token: from_files.token_id(token) for token in added} == added
    assert from_files.special_tokens["<TS_CONTEXT>"] == added["<TS_CONTEXT>"]
    assert "<SMILES>" not in from_files.special_tokens
    assert from_files.eos_id == added["<|im_end|>"]
    assert from_files.vocab_size == len(added) + len(json.loads((directory / "vocab.json").read_text()))


def test_a_domain_s_pieces_are_decoded_and_never_encoded(from_files: Tokenizer) -> None:
    """Ids of a domain's vocabulary read as the text they stand for, alone and among others."""
    ids = [from_files.token_id(piece) for piece in DOMAIN_PIECES]
    assert None not in ids
    known = [token_id for token_id in ids if token_id is not None]
    assert [from_files.token_bytes(token_id) for token_id in known] == [b"<unk>", b"cc", b"=O", b" C"]
    start = from_files.special_tokens["<|im_start|>"]
    text = from_files.encode("a", allow_special=False)
    assert from_files.decode([start, *text, *known[1:]]) == "acc=O C"
    assert from_files.decode([start, known[1]], skip_special=False) == "<|im_start|>cc"
    for piece in DOMAIN_PIECES:
        assert not set(known).intersection(from_files.encode(piece, allow_special=True))


def test_the_mark_of_a_blank_is_a_blank(from_files: Tokenizer) -> None:
    """U+2581 is read as a blank, as the released tokenizer does."""
    assert from_files.encode("a▁b", allow_special=False) == from_files.encode("a b", allow_special=False)


def test_other_classes_need_tokenizer_json(directory: Path, tmp_path: Path) -> None:
    """How a text is cut is known of a tokenizer class; of another one nothing is guessed."""
    for file in ("vocab.json", "merges.txt"):
        (tmp_path / file).symlink_to(directory / file)
    with pytest.raises(FailedPrecondition, match="tokenizer class \\(none\\)"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(FailedPrecondition, match="LlamaTokenizer"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2TokenizerFast"}))
    assert Tokenizer.from_dir(tmp_path).encode("a red circle", allow_special=False)
    with pytest.raises(FailedPrecondition) as caught:
        Tokenizer.from_dir(tmp_path / "nothing")
    assert caught.value.reason == "TOKENIZER_MISSING"


@pytest.mark.parametrize(("name", "content"), [("vocab.json", "{"), ("merges.txt", "not there\n")])
def test_broken_files_are_refused(directory: Path, tmp_path: Path, name: str, content: str) -> None:
    """A vocabulary that is no JSON, or merges of tokens that it lacks, name the files."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_text(content if file.name == name else file.read_text())
    with pytest.raises(FailedPrecondition) as caught:
        Tokenizer.from_dir(tmp_path)
    assert caught.value.reason == "TOKENIZER_INVALID"
