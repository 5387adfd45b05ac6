"""Qwen3.5's tokenizer and template beside transformers': marks, thought, tools, in every mixture.

Next: tests/parity/test_processor_qwen3_vl.py
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.processor.messages import ChatMessage, TextPart
from gateway.processor.registry import load_processor
from tests.tiny_models import EXTRA_TOKENS
from tests.tiny_qwen3_5 import make_tiny_qwen3_5

pytestmark = pytest.mark.slow

FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
TEXT = st.text(max_size=12) | st.lists(
    st.sampled_from(["a", " red", "\n", "\n\n ", "it's", "12", "b\u0304", "é", "字", "कि", *EXTRA_TOKENS]), max_size=8
).map("".join)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), TEXT), max_size=4)
TOOLS = [{"type": "function", "function": {"name": "look", "description": "é", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our processor of a checkpoint and transformers' tokenizer of it, which it recognises as this family's."""
    from transformers import AutoTokenizer

    path: Path = make_tiny_qwen3_5(tmp_path_factory.mktemp("tokens") / "tiny")
    theirs = AutoTokenizer.from_pretrained(path)
    assert type(theirs).__name__ == "Qwen3_5Tokenizer"
    return load_processor(path), theirs


@FIXTURE
@given(text=TEXT)
def test_text_encodes_alike(pair: tuple[Any, Any], text: str) -> None:
    """Combining marks and all, ids are AutoTokenizer's."""
    ours, theirs = pair
    assert ours.tokenizer.encode(text, allow_special=True) == theirs(text)["input_ids"]


@FIXTURE
@given(
    system=st.none() | TEXT,
    turns=TURNS,
    arguments=st.fixed_dictionaries(
        {}, optional={"enable_thinking": st.booleans(), "tools": st.sampled_from([None, [], TOOLS])}
    ),
)
def test_conversations_render_alike(
    pair: tuple[Any, Any], system: str | None, turns: list[tuple[str, str]], arguments: dict[str, Any]
) -> None:
    """Whatever is thought, called and said, text and ids are those of `apply_chat_template`."""
    ours, theirs = pair
    spoken = [*([] if system is None else [("system", system)]), ("user", "q"), *turns]
    expected = theirs.apply_chat_template(
        [{"role": role, "content": text} for role, text in spoken],
        tokenize=False,
        add_generation_prompt=True,
        **arguments,
    )
    made = ours.prepare_chat([ChatMessage(role, (TextPart(text),)) for role, text in spoken], [], arguments=arguments)
    assert made.text == expected
    assert list(made.token_ids) == theirs(expected)["input_ids"]
