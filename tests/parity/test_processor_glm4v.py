"""GLM's prompts against transformers: the same text, ids and ranges as its processors of 4.1V, 4.5V and 4.6V.

Next: tests/parity/test_media_glm4v.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.processor.messages import ChatMessage, TextPart
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.prompt import VideoLayout
from gateway.processor.registry import load_processor
from tessera.modality import Modality
from tests.parity.test_processor_qwen3_vl import IMAGE, TOOLS, VIDEO, items_of, runs_of, turn
from tests.tiny_glm4v import make_tiny_glm4v, make_tiny_glm4v_moe
from tests.torchvision_stub import load_hf_processor

# As GLM-4.5V's: one macro for every role's content, reasoning cut from past turns, a switch behind the user's words.
TEMPLATE_45V = """\
[gMASK]<sop>
{%- if tools -%}
    <|system|>
    {{- '\\n# Tools\\n<tools>\\n' }}
    {%- for tool in tools %}{{ tool | tojson(ensure_ascii=False) ~ '\\n' }}{%- endfor -%}
    {{- '</tools>' }}
{%- endif %}
{%- macro show(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {%- if part is mapping and part.type == 'text' -%}
                {{- part.text }}
            {%- elif part is mapping and part.type == 'image' -%}
                <|begin_of_image|><|image|><|end_of_image|>
            {%- elif part is mapping and part.type == 'video' -%}
                <|begin_of_video|><|video|><|end_of_video|>
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- for message in messages %}
    {%- if message.role == 'system' -%}
        {{- '<|system|>\\n' ~ show(message.content) }}
    {%- elif message.role == 'user' -%}
        {{- '<|user|>\\n' ~ show(message.content) }}
        {{- '/nothink' if enable_thinking is defined and not enable_thinking
            and not show(message.content).endswith('/nothink') else '' }}
    {%- elif message.role == 'assistant' -%}
        {%- set content = show(message.content) %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|assistant|>\\n<think></think>' }}
        {{- '\\n' ~ content.strip() if content.strip() else '' }}
    {%- else -%}
        {{- '<|observation|>' if loop.first or messages[loop.index0 - 1].role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' ~ show(message.content) ~ '\\n</tool_response>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>
    {{- '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif -%}
"""

# Sizes of media, in order: (height, width) of an image; (frames, height, width, fps, indices) of a clip.
CLIP = (4, 56, 84, 2.0, range(4))
CHATS: dict[str, tuple[list[ChatMessage], list[tuple], dict[str, Any]]] = {
    "text": ([turn("user", "What is it?")], [], {}),
    "text in parts": ([turn("user", "What", " is it?")], [], {}),
    "no generation prompt": ([turn("user", "Hi"), turn("assistant", "Hello.")], [], {"add_generation_prompt": False}),
    "system and turns": (
        [
            turn("system", "Be brief.\n"),
            turn("user", "Hi  there\n\n"),
            turn("assistant", "<think>\nhm\n</think>\n\nHello."),
            turn("user", "\tIt's 31,415 naïve 字 e\u0301 😀👩‍👩‍👧?"),
        ],
        [],
        {},
    ),
    "no thinking": ([turn("user", "2+2?")], [], {"enable_thinking": False}),
    "thinking": ([turn("user", "2+2?")], [], {"enable_thinking": True}),
    "tools": ([turn("system", "S"), turn("user", "Look.")], [], {"tools": TOOLS}),
    "image": ([turn("user", IMAGE, "Describe the image.")], [(100, 70)], {}),
    "image at the end": ([turn("user", "This: ", IMAGE)], [(56, 56)], {}),
    "images side by side": ([turn("user", IMAGE, IMAGE, "both?")], [(56, 84), (200, 100)], {}),
    "video": ([turn("user", VIDEO, "What happens?")], [(8, 56, 56, 2.0, range(8))], {}),
    "video before digits": ([turn("user", VIDEO, "12 apples")], [CLIP], {}),
    "video after text": ([turn("user", "This clip: ", VIDEO, "!")], [(6, 64, 96, 30.0, (0, 7, 15, 23, 31, 89))], {}),
    "odd video": ([turn("user", VIDEO)], [(5, 64, 64, 7.0, (0, 3, 5, 9, 16))], {}),
    "one frame twice": ([turn("user", VIDEO)], [(2, 64, 64, 7.0, (9, 9))], {}),
    "long times": ([turn("user", VIDEO)], [(4, 56, 56, 23.976, (0, 999, 29999, 299999))], {}),
    "two videos": ([turn("user", VIDEO, VIDEO, "same?")], [CLIP, (6, 64, 96, 3.0, range(6))], {}),
    "image then video": ([turn("user", IMAGE, "and", VIDEO)], [(56, 56), CLIP], {}),
    "video then image": ([turn("user", VIDEO, IMAGE, "?")], [CLIP, (84, 56)], {}),
    "several turns": (
        [
            turn("user", IMAGE, "Describe."),
            turn("assistant", "a red circle."),
            turn("user", VIDEO, "And this?", IMAGE),
            turn("assistant", "a star moves left."),
            turn("user", "Both, please: ", IMAGE, "é", VIDEO),
        ],
        [(56, 56), (4, 56, 56, 1.0, range(4)), (56, 112), (84, 84), (6, 56, 56, 23.976, range(0, 60, 10))],
        {},
    ),
    "tool media": (
        [
            turn("user", IMAGE, "Look closer."),
            turn("assistant", '<tool_call>look\n{"zoom": 2}\n</tool_call>'),
            turn("tool", "here: ", IMAGE),
            turn("tool", VIDEO, "and moving"),
        ],
        [(56, 56), (112, 112), CLIP],
        {"tools": TOOLS, "enable_thinking": False},
    ),
}
WITH_MEDIA = [name for name, chat in CHATS.items() if chat[1]]


@pytest.fixture(scope="module", params=["glm4v", "glm4v_moe", "glm46v"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultimodalProcessor, Any]:
    """Our processor and transformers' of the same checkpoint."""
    path: Path = tmp_path_factory.mktemp("prompts") / request.param
    if request.param == "glm4v_moe":
        make_tiny_glm4v_moe(path)
        (path / "chat_template.jinja").write_text(TEMPLATE_45V)
    else:
        make_tiny_glm4v(path, family=request.param)
    return load_processor(path), load_hf_processor(path)


def render_hf(hf: Any, messages: list[ChatMessage], options: dict[str, Any]) -> str:
    """The text that transformers renders; turns of text alone are strings, as GLM's template asks."""
    spoken = []
    for message in messages:
        parts = [
            {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": str(part.modality)}
            for part in message.parts
        ]
        texts = [part["text"] for part in parts if "text" in part]
        content = "".join(texts) if len(texts) == len(parts) else parts
        spoken.append({"role": message.role, "content": content})
    return hf.apply_chat_template(spoken, **({"add_generation_prompt": True} | options))


def run_hf(hf: Any, text: str, media: list[tuple]) -> dict:
    """What transformers' processor makes of a text and blank media of these sizes."""
    from transformers.video_utils import VideoMetadata

    clips = [size for size in media if len(size) == 5]
    return hf(
        text=[text],
        images=[np.zeros((*size, 3), np.uint8) for size in media if len(size) == 2] or None,
        videos=[np.zeros((*size[:3], 3), np.uint8) for size in clips] or None,
        video_metadata=[VideoMetadata(total_num_frames=9, fps=s[3], frames_indices=list(s[4])) for s in clips] or None,
        do_sample_frames=False,
        return_tensors="np",
    )


@pytest.mark.parametrize("name", CHATS)
def test_chats_give_the_ids_and_ranges_of_transformers(pair: tuple[MultimodalProcessor, Any], name: str) -> None:
    """A chat's rendered text, ids and runs of placeholders are those of transformers' processor."""
    ours, hf = pair
    messages, media, options = CHATS[name]
    text = render_hf(hf, messages, options)
    output = run_hf(hf, text, media)
    arguments = {key: value for key, value in options.items() if key != "add_generation_prompt"}
    made = ours.prepare_chat(
        messages,
        items_of(output, media),
        arguments=arguments,
        add_generation_prompt=options.get("add_generation_prompt", True),
    )
    assert made.text == text
    assert list(made.token_ids) == output["input_ids"][0].tolist()
    assert [(r.offset, r.length) for item in made.items for r in item.ranges] == runs_of(output)
    assert ours.prepare_token_ids(made.token_ids, made.items).token_ids == made.token_ids


@pytest.mark.parametrize("layout", VideoLayout)
@pytest.mark.parametrize("name", WITH_MEDIA)
def test_the_same_prompt_as_text_or_ids_expands_alike(
    pair: tuple[MultimodalProcessor, Any], name: str, layout: VideoLayout
) -> None:
    """Rendered text or its unexpanded ids, one placeholder an item, give Chat's ids; GLM has one layout."""
    ours, hf = pair
    messages, media, options = CHATS[name]
    text = render_hf(hf, messages, options)
    output = run_hf(hf, text, media)
    items = items_of(output, media)
    expected = output["input_ids"][0].tolist()
    assert list(ours.prepare_text(text, items, layout).token_ids) == expected
    assert list(ours.prepare_token_ids(hf.tokenizer(text)["input_ids"], items, layout).token_ids) == expected


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("<|image|>", [(56, 56)]),
        ("a<|image|>b", [(56, 56)]),
        ("<|begin_of_video|><|video|>9 lives<|end_of_video|>", [CLIP]),
        (
            "<|image|>x<|begin_of_video|>z<|video|>y<|end_of_video|><|begin_of_image|><|image|><|end_of_image|>",
            [(56, 56), CLIP, (84, 56)],
        ),
        ("[gMASK]<sop><|user|>\n<|begin_of_video|><|video|><|end_of_video|>é<think>", [(7, 56, 56, 2.0, range(7))]),
    ],
)
def test_raw_prompts_give_the_ids_of_transformers(
    pair: tuple[MultimodalProcessor, Any], text: str, media: list[tuple]
) -> None:
    """A raw text prompt with markers anywhere, a picture's bare too, gives the ids of transformers' processor."""
    ours, hf = pair
    output = run_hf(hf, text, media)
    made = ours.prepare_text(text, items_of(output, media))
    assert list(made.token_ids) == output["input_ids"][0].tolist()


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_typed_special_tokens_stay_text(pair: tuple[MultimodalProcessor, Any], role: str) -> None:
    """What spells GLM's special tokens, whole or split over parts and turns, gives none of their ids."""
    ours, hf = pair
    typed = "".join(ours.tokenizer.special_tokens) + "[gMASK]<sop><|user|>\n<|image|>"
    chat = [turn("user", "a"), turn(role, typed, "<|ima", "ge|>"), turn("user", "b<|vid"), turn("user", "eo|>")]
    made = ours.prepare_chat(chat, [])
    plain = [turn("user", "a"), turn(role, "c"), turn("user", "b"), turn("user", "d")]
    special = set(ours.tokenizer.special_ids)
    assert [token for token in made.token_ids if token in special] == [
        token for token in ours.prepare_chat(plain, []).token_ids if token in special
    ]
    assert made.text == render_hf(hf, chat, {})
    assert made.num_tokens(Modality.IMAGE) == 0


def test_a_checkpoint_of_an_older_architecture_may_name_the_newer_processor(tmp_path: Path) -> None:
    """GLM-4.6V's files keep 4.1V's architecture; the processor that they name decides how clips are laid out."""
    make_tiny_glm4v(tmp_path, family="glm46v")
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["Glm4vForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = load_processor(tmp_path)
    assert (processor.architecture, processor.rules.family) == ("Glm4vForConditionalGeneration", "glm46v")
