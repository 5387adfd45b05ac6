"""The tokenizer against transformers' AutoTokenizer: encode, decode, and what is special.

Next: tests/parity/test_processor_qwen3_vl.py
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.processor.chat_template import ChatTemplate
from gateway.processor.messages import ChatMessage, TextPart
from gateway.processor.tokenizer import Tokenizer
from gateway.stream.detokenizer import Detokenizer
from tests.tiny_models import EXTRA_TOKENS, SPECIAL_TOKENS, make_tiny_qwen3vl
from tests.torchvision_stub import install

EMBEDDED = Path(__file__).parents[2] / "models" / "shapes" / "checkpoint"
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)

PLAIN = st.text(max_size=20) | st.lists(
    st.sampled_from(["a", " red", "\n", "\n\n ", "it's", "12", "é", "e\u0301", "字", "😀", "\u200d", *EXTRA_TOKENS]),
    max_size=10,
).map("".join)
SPECIAL = st.lists(PLAIN | st.sampled_from(SPECIAL_TOKENS), max_size=6).map("".join)


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer, Any]:
    """A checkpoint, our tokenizer of it and transformers'."""
    install()
    from transformers import AutoTokenizer

    path = EMBEDDED
    if request.param == "tiny":
        path = make_tiny_qwen3vl(tmp_path_factory.mktemp("tokens") / "tiny")
    return path, Tokenizer.from_dir(path), AutoTokenizer.from_pretrained(path)


@FIXTURE
@given(text=SPECIAL)
def test_text_with_special_tokens_encodes_alike(pair: tuple[Path, Tokenizer, Any], text: str) -> None:
    """With special tokens allowed, ids are AutoTokenizer's."""
    _, ours, hf = pair
    assert ours.encode(text, allow_special=True) == hf(text)["input_ids"]


@FIXTURE
@given(text=SPECIAL)
def test_text_without_special_tokens_encodes_alike(pair: tuple[Path, Tokenizer, Any], text: str) -> None:
    """Without, ids are AutoTokenizer's with split_special_tokens."""
    _, ours, hf = pair
    assert ours.encode(text, allow_special=False) == hf(text, split_special_tokens=True)["input_ids"]


@FIXTURE
@given(ids=st.lists(st.integers(0, 458), max_size=20))
def test_ids_decode_alike_whole_and_in_steps(pair: tuple[Path, Tokenizer, Any], ids: list[int]) -> None:
    """Decoding, at once and incrementally, gives AutoTokenizer's text."""
    _, ours, hf = pair
    ids = [token_id for token_id in ids if token_id < len(hf)]
    expected = hf.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == expected
    steps = Detokenizer(ours)
    assert "".join(map(steps.push, ids)) + steps.finish() == expected
    assert ours.decode(ids, skip_special=False) == hf.decode(ids)


@FIXTURE
@given(texts=st.lists(PLAIN, min_size=1, max_size=4))
def test_ordinary_chats_encode_alike(pair: tuple[Path, Tokenizer, Any], texts: list[str]) -> None:
    """A chat of ordinary text has the ids of apply_chat_template."""
    path, ours, hf = pair
    template = ChatTemplate.from_dir(path, ours)
    assert template is not None
    roles = ["system", "user", "assistant", "user"][: len(texts)]
    rendered = template.render([ChatMessage(r, (TextPart(t),)) for r, t in zip(roles, texts, strict=True)])
    ids: list[int] = []
    for piece in rendered.pieces:
        ids += [piece] if isinstance(piece, int) else ours.encode(piece, allow_special=False)
    spoken = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    assert ids == hf.apply_chat_template(spoken, add_generation_prompt=True)["input_ids"]


def test_special_tokens_are_the_same(pair: tuple[Path, Tokenizer, Any]) -> None:
    """The same ids are special, and the same tokens have names."""
    _, ours, hf = pair
    assert ours.vocab_size == len(hf)
    flagged = {i for i, token in hf.added_tokens_decoder.items() if token.special}
    assert ours.special_ids == flagged
    assert ours.named_tokens == hf.special_tokens_map
    assert (ours.eos_id, ours.pad_id, ours.bos_id) == (hf.eos_token_id, hf.pad_token_id, hf.bos_token_id)
