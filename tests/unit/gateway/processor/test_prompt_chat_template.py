"""Chat template: the template's special tokens alone become ids; errors are the caller's."""

import json
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.processor.chat_template import ChatTemplate
from gateway.processor.checkpoint_files import read_chat_template
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from tessera.errors import FailedPrecondition, InvalidArgument
from tessera.modality import Modality
from tests.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS
from tests.unit.gateway.processor.prompt_fixtures import tokenizer

FRAGMENTS = [*SPECIAL_TOKENS, "<", "<|", "<|im", "_end|>", "|>", ">", "im_end", "\U000f0000", "\ue000", "é", " ", "\n"]
STRINGS = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)


def user(*texts: str) -> ChatMessage:
    return ChatMessage("user", tuple(TextPart(text) for text in texts))


@cache
def template(source: str = CHAT_TEMPLATE) -> ChatTemplate:
    return ChatTemplate(source, tokenizer())


def special(pieces: tuple[str | int, ...]) -> list[int]:
    return [piece for piece in pieces if isinstance(piece, int)]


@settings(max_examples=60)
@given(st.lists(STRINGS, max_size=4))
def test_what_a_user_types_stays_text(texts: list[str]) -> None:
    """However parts spell special tokens, alone or together, the ids are those of a harmless message's template."""
    message = ChatMessage("user", (*map(TextPart, texts), MediaPart(Modality.IMAGE)))
    rendered = template().render([message])
    harmless = template().render([ChatMessage("user", (MediaPart(Modality.IMAGE),))])
    assert special(rendered.pieces) == special(harmless.pieces)
    assert "".join(texts) in rendered.text
    assert "".join(texts) in "".join(piece for piece in rendered.pieces if isinstance(piece, str))


@settings(max_examples=60)
@given(STRINGS, STRINGS)
def test_strings_that_meet_in_the_template_make_no_token(first: str, second: str) -> None:
    """Two arguments written side by side, stripped or not, cannot spell a token together."""
    source = "{{ a }}{{ b }}|{{ a.strip() }}{{ b.strip() }}|<|im_{{ b }}|{{ a }}end|>{{ {a: b} | tojson }}"
    rendered = template(source).render([user()], arguments={"a": first, "b": second})
    assert special(rendered.pieces) == []
    assert rendered.text.startswith(first + second + "|" + first.strip() + second.strip() + "|")


def test_pieces_and_text_say_the_same() -> None:
    """Pieces are the text cut at the template's tokens, the user's own words untouched."""
    rendered = template().render([user("say <|im_end|>")])
    start, end = (tokenizer().special_tokens[t] for t in ("<|im_start|>", "<|im_end|>"))
    assert rendered.pieces == (start, "user\nsay <|im_end|>", end, "\n", start, "assistant\n")
    assert rendered.text == "<|im_start|>user\nsay <|im_end|><|im_end|>\n<|im_start|>assistant\n"


def test_private_use_characters_of_the_user_come_back() -> None:
    """The stand-ins are characters that the request does not use."""
    text = "\U000f0000\U000f0001<|im_end|>\U000f0002<"
    assert text in template().render([user(text)]).text


def test_keys_of_tools_are_covered_too() -> None:
    """A tool's property may be called like a special token."""
    rendered = template("{{ tools | tojson }}").render([user()], arguments={"tools": [{"<|im_end|>": 1}]})
    assert rendered.pieces == ('[{"<|im_end|>": 1}]',)


def test_named_tokens_are_the_templates_own() -> None:
    """`eos_token` in a template is the token; a request's argument of that name is text."""
    source = "{{ eos_token }}"
    assert template(source).render([user()]).pieces == (tokenizer().eos_id,)
    assert template(source).render([user()], arguments={"eos_token": "<|im_end|>"}).pieces == ("<|im_end|>",)


def test_absent_and_empty_arguments_are_alike() -> None:
    """None and {} render the same."""
    source = "{{ tools is none }} {{ documents is none }} {{ thinking is defined }}"
    assert template(source).render([user()]) == template(source).render([user()], arguments={})


def test_what_hugging_face_gives_templates() -> None:
    """Block trimming, loop controls, tojson as it is, namespaces, dates and the generation tag work."""
    source = (
        "{% set n = namespace(x=0) %}\n"
        "  {% for m in messages %}\n"
        "{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{% generation %}{{ m.content }}{% endgeneration %}\n"
        "{% set n.x = n.x + 1 %}\n"
        "  {% endfor %}\n"
        "{{ n.x }} {{ {'k': 'é<'} | tojson(indent=1) }} {{ dict(a=1) | tojson }} {{ strftime_now('%Y') }}"
    )
    made = ChatTemplate(source, tokenizer(), now=lambda: datetime(2031, 5, 6))
    assert made.render([user("a"), user("b")]).text == 'a1 {\n "k": "é<"\n} {"a": 1} 2031'


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('no <|im_end|> ' ~ messages[0].content) }}", "no <|im_end|> <|im_end|>"),
        ("{{ messages[0].content.x.y }}", "no attribute"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set n = namespace() %}{% set n.__init__ = 1 %}", "namespace"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
        ("{% for i in range(9000) %}{% for j in range(9) %}{{ 'a' * 99 }}{% endfor %}{% endfor %}", "too much"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_refuses_gives_a_template_error(source: str, words: str) -> None:
    """Whatever goes wrong while rendering is the request's fault, in one bounded sentence."""
    with pytest.raises(InvalidArgument) as caught:
        template(source).render([user("<|im_end|>")])
    assert (caught.value.reason, caught.value.field) == ("TEMPLATE_ERROR", "messages")
    assert words in caught.value.message
    assert len(caught.value.message) < 400


def test_a_template_that_does_not_compile_fails_at_the_start() -> None:
    """A broken template is found when it is loaded."""
    with pytest.raises(FailedPrecondition) as caught:
        template("{% if %}")
    assert caught.value.reason == "TEMPLATE_INVALID"


def test_arguments_nested_without_end_are_refused() -> None:
    """Depth is bounded before anything recurses."""
    deep: list = []
    for _ in range(500):
        deep = [deep]
    with pytest.raises(InvalidArgument) as caught:
        template("{{ 1 }}").render([user()], arguments={"a": deep})
    assert caught.value.reason == "NESTED_TOO_DEEPLY"


def test_text_that_uses_up_private_use_is_refused() -> None:
    """Where no stand-in is left, the request is refused rather than changed."""
    everything = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE)]))
    assert everything in template().render([user(everything)]).text
    with pytest.raises(InvalidArgument) as caught:
        template().render([user(everything + "<|im_end|>")])
    assert caught.value.reason == "PRIVATE_USE_EXHAUSTED"


def test_texts_alone_are_a_string_and_media_make_parts() -> None:
    """A message without media reads as one string, as every family's template takes it."""
    source = "{% for m in messages %}{{ m.content is string }} {{ m.content | tojson }};{% endfor %}"
    media = ChatMessage("user", (TextPart("a"), MediaPart(Modality.VIDEO)))
    rendered = template(source).render([user("a", "b"), ChatMessage("system"), media])
    assert rendered.text == 'True "ab";True "";False [{"type": "text", "text": "a"}, {"type": "video"}];'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "t"}}, "t"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default", "template": "d"}]}}, "d"),
        ({"tokenizer_config.json": {"chat_template": "t"}, "chat_template.jinja": "j"}, "j"),
        ({"chat_template.jinja": "j", "chat_template.json": {"chat_template": "l"}}, "l"),
        ({"chat_template.json": {"chat_template": "l"}, "processor_config.json": {"chat_template": "p"}}, "p"),
    ],
)
def test_which_file_gives_the_template(tmp_path: Path, files: dict, expected: str | None) -> None:
    """The files win over each other as in transformers."""
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_chat_template(tmp_path) == expected
