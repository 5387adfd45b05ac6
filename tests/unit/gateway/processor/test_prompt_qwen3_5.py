"""Qwen3.5's prompts: its template's thoughts, tools and system prompts; marks that are letters; text-only too."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gateway.media.rules import MediaRules
from gateway.processor.chat_template import ChatTemplate
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.qwen3_5 import Qwen3_5Processor
from gateway.processor.registry import load_processor
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tessera.items import ItemGeometry
from tessera.modality import Modality
from tests.tiny_models import SPECIAL_TOKENS
from tests.tiny_models import build_tokenizer as build_qwen3_tokenizer
from tests.tiny_qwen3_5 import CHAT_TEMPLATE, build_tokenizer
from tests.unit.gateway.processor.prompt_fixtures import image, video

USER, ASSISTANT, END = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"
VISION = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64}
SIZES = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 1, "longest_edge": 9216},
}


@cache
def tokenizer() -> Tokenizer:
    """The tiny checkpoints' tokenizer."""
    return Tokenizer(build_tokenizer(), {"eos_token": "<|im_end|>"})


@cache
def processor() -> Qwen3_5Processor:
    """A processor with the tiny checkpoints' template."""
    return Qwen3_5Processor(
        architecture="Qwen3_5ForConditionalGeneration",
        tokenizer=tokenizer(),
        template=ChatTemplate(CHAT_TEMPLATE, tokenizer()),
        rules=MediaRules(),
        geometry=ItemGeometry(16, 2, 2, 64),
        tokens=VisionTokens.of(tokenizer(), {}),
        vocab_size=640,
    )


def message(role: str, text: str) -> ChatMessage:
    return ChatMessage(role, (TextPart(text),))


def render(*messages: ChatMessage, **arguments: Any) -> str:
    """The prompt as text."""
    return processor().render_chat(messages, arguments=arguments).text


@pytest.mark.parametrize(
    ("arguments", "opening"),
    [
        ({}, "<think>\n"),
        ({"enable_thinking": True}, "<think>\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ],
)
def test_thinking_is_on_unless_switched_off(arguments: dict[str, Any], opening: str) -> None:
    """The prompt ends in an open thought, or in an empty one."""
    assert render(message("user", "hi"), **arguments) == f"{USER}hi{END}{ASSISTANT}{opening}"


def test_content_is_stripped() -> None:
    """White space round a message is the template's to drop, line ends inside it stay."""
    made = render(message("system", "\n be brief "), message("user", " a \n b\n\n"))
    assert made == f"<|im_start|>system\nbe brief{END}{USER}a \n b{END}{ASSISTANT}<think>\n"


def test_thoughts_of_earlier_turns_are_left_out() -> None:
    """What the model thought before the newest question goes; behind it, as between tool calls, it stays."""
    thought = "<think>\nhm\n</think>\n\nyes"
    earlier = render(message("user", "a"), message("assistant", thought), message("user", "b"))
    assert earlier == f"{USER}a{END}{ASSISTANT}yes{END}{USER}b{END}{ASSISTANT}<think>\n"
    newest = render(message("user", "a"), message("assistant", thought), message("tool", "7"))
    answer = f"{USER.rstrip()}\n<tool_response>\n7\n</tool_response>{END}"
    assert newest == f"{USER}a{END}{ASSISTANT}{thought}{END}{answer}{ASSISTANT}<think>\n"


def test_tools_stand_before_the_system_prompt() -> None:
    """Tools are written into one system message, with the caller's own behind them."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"é": 1}}}, {"name": "<|im_end|>"}]
    made = render(message("system", "be brief"), message("user", "hi"), tools=tools)
    written = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    head = "<|im_start|>system\n# Tools\n\nThese functions can be called:"
    assert made.startswith(f"{head}\n<tools>\n{written}\n</tools>\n\nbe brief{END}{USER}hi{END}")
    assert render(message("user", "hi"), tools=[]) == render(message("user", "hi"))


@pytest.mark.parametrize(
    "messages", [[message("user", "a"), message("system", "b")], [message("system", "a")], [message("assistant", "a")]]
)
def test_conversations_that_the_template_refuses(messages: list[ChatMessage]) -> None:
    """A system message that is not the first, or no question at all, is the caller's error."""
    with pytest.raises(InvalidArgument) as caught:
        render(*messages)
    assert (caught.value.reason, caught.value.field) == ("TEMPLATE_ERROR", "messages")


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("typed", [*SPECIAL_TOKENS, "<|im_", " <|vision_start|><|image_pad|><|vision_end|>\n"])
def test_typed_special_tokens_stay_text(role: str, typed: str) -> None:
    """Whoever spells a special token, stripped or not, the prompt's special ids are the template's."""

    def special(text: str) -> list[int]:
        turns = [message("user", "q"), message(role, text), message("user", "q")]
        turns = turns[1:] if role == "system" else turns
        made = processor().prepare_chat(turns, [])
        assert made.text is not None and text.strip() in made.text
        return [token for token in made.token_ids if token < len(SPECIAL_TOKENS)]

    assert special(typed) == special("x")


def test_items_stand_where_the_template_puts_them() -> None:
    """Images and clips expand as Qwen3-VL's do, between stripped text."""
    parts = (TextPart(" see "), MediaPart(Modality.IMAGE), MediaPart(Modality.VIDEO), TextPart(" ? "))
    made = processor().prepare_chat([ChatMessage("user", parts)], [image(2, 4), video(1, 2, 2)])
    picture = "<|vision_start|>" + "<|image_pad|>" * 2 + "<|vision_end|>"
    clip = "<|vision_start|><0.2 seconds><|vision_start|><|video_pad|><|vision_end|><|vision_end|>"
    expected = f"{USER}see {picture}{clip} ?{END}{ASSISTANT}<think>\n"
    assert made.token_ids == tuple(tokenizer().encode(expected, allow_special=True))


def test_combining_marks_belong_to_words() -> None:
    """The checkpoint's own split pattern decides: here marks are letters, in Qwen3-VL they are not."""
    content = json.loads(build_tokenizer().to_str())
    older = json.loads(build_qwen3_tokenizer().to_str())
    for vocabulary in (content, older):
        vocabulary["model"]["vocab"] |= {"bÌ": 700}
        vocabulary["model"]["merges"].append(["b", "Ì"])
    newer_ids, older_ids = (
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(vocabulary))).encode("ab\u0304c", allow_special=False)
        for vocabulary in (content, older)
    )
    assert 700 in newer_ids and 700 not in older_ids


def checkpoint(path: Path, config: dict[str, Any]) -> Path:
    """Write a checkpoint's files that a processor reads."""
    build_tokenizer().save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (path / "config.json").write_text(json.dumps(config))
    if "vision_config" in config:
        (path / "preprocessor_config.json").write_text(json.dumps(SIZES))
    return path


@pytest.mark.parametrize("architecture", ["Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"])
def test_a_checkpoint_gives_its_processor(tmp_path: Path, architecture: str) -> None:
    """Ids come from config.json, which the tokenizer must agree with; there is no DeepStack."""
    config = {"architectures": [architecture], "text_config": {"vocab_size": 640}, "vision_config": VISION}
    pad = tokenizer().special_tokens["<|image_pad|>"]
    made = load_processor(checkpoint(tmp_path, config | {"image_token_id": pad}))
    assert type(made) is Qwen3_5Processor
    assert made.architecture == architecture
    assert (made.geometry.num_deepstack_layers, made.vocab_size) == (0, 640)
    with pytest.raises(FailedPrecondition, match="image_token_id"):
        load_processor(checkpoint(tmp_path, config | {"image_token_id": 248056}))


@pytest.mark.parametrize("architecture", ["Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"])
def test_a_text_only_checkpoint_takes_text(tmp_path: Path, architecture: str) -> None:
    """With a flat config and no processor files, conversations are served and media are refused."""
    made = load_processor(checkpoint(tmp_path, {"architectures": [architecture], "vocab_size": 640}))
    assert (made.modalities, made.vocab_size) == (frozenset(), 640)
    assert made.prepare_chat([message("user", "hi")], []).text == f"{USER}hi{END}{ASSISTANT}<think>\n"
    with pytest.raises(Unimplemented) as caught:
        made.prepare_chat([ChatMessage("user", (MediaPart(Modality.IMAGE),))], [image()])
    assert caught.value.reason == "MODALITY_UNSUPPORTED"
