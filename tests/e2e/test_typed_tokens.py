"""Whoever types a special token, wherever, has typed text: in every family only the template writes tokens."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.processor.tokenizer import Tokenizer
from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import SMALL, Case, Turn, chat_request, user

FAMILIES = ("5.x", "qwen3_5", "glm4v", "interns1_pro")
SPLIT = 3  # where a token's spelling is cut in two


@pytest.fixture
def pair_of(pairs: Pairs, tiny: Callable[[str], Path]) -> Callable[[str], Pair]:
    """The default pair of a family."""
    return lambda family: pairs.get(Flags(tiny(family)))


def tool(name: str, text: str) -> dict[str, Any]:
    """A tool whose every string is a caller's."""
    schema = {"type": "object", "properties": {text: {"type": "string", "description": text, "enum": [text]}}}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": schema}}


def conversation(text: str, cut: Sequence[tuple[str, str]]) -> pb.ChatRequest:
    """A conversation in which everybody says `text`; `cut` are spellings in two parts that stand side by side."""
    halves = [half for pair in cut for half in pair]
    turns = (
        Turn("system", (text,)),
        user("Look: ", text, SMALL, *halves),
        Turn("assistant", (text,)),
        Turn("tool", (text, *halves)),
        user(text),
    )
    request = chat_request(Case("typed", turns), max_tokens=2)
    request.template_args.update({"tools": [tool(f"f{text}", text)], "custom": text})
    return request


@pytest.mark.parametrize("family", FAMILIES)
def test_typed_special_tokens_stay_text(
    family: str, pair_of: Callable[[str], Pair], tiny: Callable[[str], Path]
) -> None:
    """All special tokens, typed by everybody, in tools and arguments, whole or in halves, give none of their ids."""
    tokenizer = Tokenizer.from_dir(tiny(family))
    tokens = dict(tokenizer.special_tokens)
    stub = pair_of(family).stub
    typed = conversation(" ".join(tokens), [(name[:SPLIT], name[SPLIT:]) for name in tokens])
    plain = conversation(" ".join("x" * len(name) for name in tokens), [("xxx", "x" * len(name)) for name in tokens])
    made, like = (stub.Prepare(pb.PrepareRequest(chat=request)) for request in (typed, plain))
    ids = set(tokens.values())
    assert [token for token in made.token_ids if token in ids] == [token for token in like.token_ids if token in ids]
    assert len(made.items) == len(like.items) == 1
    assert made.rendered_prompt.count("".join(tokens)) >= 2  # the halves, side by side
    [span] = made.items[0].ranges
    short = [token for index, token in enumerate(made.token_ids) if not span.offset < index < span.offset + span.length]
    assert tokenizer.decode(short, skip_special=False) == made.rendered_prompt
    assert stub.Chat(typed).usage.prompt_tokens == len(made.token_ids)
