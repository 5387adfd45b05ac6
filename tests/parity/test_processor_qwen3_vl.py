"""Prompts against transformers: the same ids and the same placeholder ranges as its processor.

Next: tests/parity/test_processor_tokenizer.py
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.prompt import VideoLayout
from gateway.processor.registry import load_processor
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tests.tiny_models import make_tiny_qwen3vl
from tests.torchvision_stub import load_hf_processor

EMBEDDED = Path(__file__).parents[2] / "models" / "shapes" / "checkpoint"

# As the published templates do it: tools in the system turn, tool answers inside user turns, numbered media on demand.
TEMPLATE = """\
{%- set count = namespace(image=0, video=0) %}
{%- macro show(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part -%}
                {%- set count.image = count.image + 1 -%}
                {%- if add_vision_id %}Picture {{ count.image }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif part.type == 'video' or 'video' in part -%}
                {%- set count.video = count.video + 1 -%}
                {%- if add_vision_id %}Video {{ count.video }}: {% endif -%}
                <|vision_start|><|video_pad|><|vision_end|>
            {%- else -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- show(messages[0].content) + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + show(messages[0].content) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + show(message.content) + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role != 'system' %}
        {%- if message.role == 'assistant' %}
            {{- '<|im_start|>assistant\\n' }}
            {%- generation %}
                {{- show(message.content).split('</think>')[-1].lstrip('\\n') + '<|im_end|>' }}
            {%- endgeneration %}
            {{- '\\n' }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + show(message.content) + '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks “closer” & <nearer>: é字😀",
            "parameters": {
                "type": "object",
                "properties": {"zoom": {"type": "number", "minimum": 1, "maximum": 2.5}},
                "required": ["zoom"],
            },
        },
    }
]

IMAGE = MediaPart(Modality.IMAGE)
VIDEO = MediaPart(Modality.VIDEO)


def turn(role: str, *parts: str | MediaPart) -> ChatMessage:
    return ChatMessage(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


# Sizes of media, in order: (height, width) of an image; (frames, height, width, fps, indices) of a clip.
CHATS: dict[str, tuple[list[ChatMessage], list[tuple], dict[str, Any]]] = {
    "text": ([turn("user", "What is it?")], [], {}),
    "text in parts": ([turn("user", "What", " is it?")], [], {}),
    "no generation prompt": ([turn("user", "Hi"), turn("assistant", "Hello.")], [], {"add_generation_prompt": False}),
    "system and turns": (
        [
            turn("system", "Be brief."),
            turn("user", "Hi  there\n\n"),
            turn("assistant", "<think>\nhm\n</think>\n\nHello."),
            turn("user", "\tIt's 3,141 naïve 字 e\u0301 😀👩‍👩‍👧?"),
        ],
        [],
        {},
    ),
    "image": ([turn("user", IMAGE, "Describe the image.")], [(100, 70)], {}),
    "image at the end": ([turn("user", "This: ", IMAGE)], [(64, 64)], {}),
    "images side by side": ([turn("user", IMAGE, IMAGE, "both?")], [(64, 96), (200, 100)], {}),
    "video": ([turn("user", VIDEO, "What happens?")], [(8, 64, 64, 2.0, range(8))], {}),
    "video after text": ([turn("user", "This clip: ", VIDEO, "!")], [(6, 64, 96, 30.0, (0, 7, 15, 23, 31, 39))], {}),
    "odd video": ([turn("user", VIDEO)], [(5, 64, 64, 7.0, (0, 3, 5, 9, 16))], {}),
    "two videos": ([turn("user", VIDEO, VIDEO, "same?")], [(4, 64, 64, 2.0, range(4)), (6, 64, 96, 3.0, range(6))], {}),
    "image then video": ([turn("user", IMAGE, "and", VIDEO)], [(64, 64), (4, 64, 64, 4.0, range(4))], {}),
    "video then image": ([turn("user", VIDEO, IMAGE, "?")], [(4, 64, 64, 4.0, range(4)), (96, 64)], {}),
    "several turns": (
        [
            turn("user", IMAGE, "Describe."),
            turn("assistant", "a red circle."),
            turn("user", VIDEO, "And this?", IMAGE),
            turn("assistant", "a star moves left."),
            turn("user", "Both, please: ", IMAGE, "é", VIDEO),
        ],
        [(64, 64), (4, 64, 64, 1.0, range(4)), (64, 128), (96, 96), (6, 64, 64, 23.976, range(0, 60, 10))],
        {},
    ),
    "tools": ([turn("system", "S"), turn("user", "Look.")], [], {"tools": TOOLS}),
    "tools and tool media": (
        [
            turn("user", IMAGE, "Look closer."),
            turn("assistant", '<tool_call>\n{"name": "look"}\n</tool_call>'),
            turn("tool", "here: ", IMAGE),
            turn("tool", VIDEO, "and moving"),
        ],
        [(64, 64), (128, 128), (4, 64, 64, 2.0, range(4))],
        {"tools": TOOLS},
    ),
    "numbered": (
        [turn("user", IMAGE, VIDEO, IMAGE, "?")],
        [(64, 64), (4, 64, 64, 2.0, range(4)), (64, 64)],
        {"add_vision_id": True},
    ),
}


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultimodalProcessor, Any]:
    """Our processor and transformers' of the same checkpoint, with the same template."""
    path = EMBEDDED
    if request.param == "tiny":
        path = make_tiny_qwen3vl(tmp_path_factory.mktemp("prompts") / "tiny")
        (path / "chat_template.jinja").write_text(TEMPLATE)
    return load_processor(path), load_hf_processor(path)


def run_hf(hf: Any, messages: list[ChatMessage], media: list[tuple], options: dict[str, Any]) -> tuple[dict, str]:
    """What transformers makes of a chat: its processor's output, and the rendered text."""
    from transformers.video_utils import VideoMetadata

    spoken = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": str(part.modality)}
                for part in message.parts
            ],
        }
        for message in messages
    ]
    text = hf.apply_chat_template(spoken, **({"add_generation_prompt": True} | options))
    images = [np.zeros((*size, 3), np.uint8) for size in media if len(size) == 2]
    clips = [size for size in media if len(size) == 5]
    output = hf(
        text=[text],
        images=images or None,
        videos=[np.zeros((frames, height, width, 3), np.uint8) for frames, height, width, _, _ in clips] or None,
        video_metadata=[
            VideoMetadata(total_num_frames=1000, fps=fps, frames_indices=list(indices))
            for _, _, _, fps, indices in clips
        ]
        or None,
        do_sample_frames=False,
        return_tensors="np",
    )
    return output, text


def items_of(output: dict, media: list[tuple]) -> list[MultimodalItem]:
    """Items with transformers' grids and the times of their frames."""
    grids = {2: iter(output.get("image_grid_thw", ())), 5: iter(output.get("video_grid_thw", ()))}
    items = []
    for size in media:
        t, h, w = map(int, next(grids[len(size)]))
        items.append(
            MultimodalItem(
                modality=Modality.IMAGE if len(size) == 2 else Modality.VIDEO,
                payload_kind=PayloadKind.PIXELS_U8,
                content_hash=bytes(32),
                grid_thw=(t, h, w),
                timestamps=() if len(size) == 2 else tuple(index / size[3] for index in size[4]),
            )
        )
    return items


def runs_of(output: dict) -> list[tuple[int, int]]:
    """Maximal runs of one kind of placeholder: (offset, length)."""
    kinds = output["mm_token_type_ids"][0].tolist()
    runs, offset = [], 0
    for kind, group in groupby(kinds):
        length = len(list(group))
        if kind:
            runs.append((offset, length))
        offset += length
    return runs


@pytest.mark.parametrize("name", CHATS)
def test_chats_give_the_ids_and_ranges_of_transformers(pair: tuple[MultimodalProcessor, Any], name: str) -> None:
    """A chat's rendered text, ids and runs of placeholders are those of transformers' processor."""
    ours, hf = pair
    messages, media, options = CHATS[name]
    output, text = run_hf(hf, messages, media, options)
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


@pytest.mark.parametrize("name", CHATS)
def test_the_same_prompt_as_text_or_ids_expands_alike(pair: tuple[MultimodalProcessor, Any], name: str) -> None:
    """The rendered text given to Generate, or its unexpanded ids, give the ids that Chat gives."""
    ours, hf = pair
    messages, media, options = CHATS[name]
    output, text = run_hf(hf, messages, media, options)
    items = items_of(output, media)
    expected = output["input_ids"][0].tolist()
    assert list(ours.prepare_text(text, items).token_ids) == expected
    assert list(ours.prepare_token_ids(hf.tokenizer(text)["input_ids"], items).token_ids) == expected


@pytest.mark.parametrize("name", [name for name, chat in CHATS.items() if any(len(size) == 5 for size in chat[1])])
def test_layout_v4_is_the_string_of_457_in_the_tokenizer(pair: tuple[MultimodalProcessor, Any], name: str) -> None:
    """4.57 put the timed frames in the place of start, pad and end; the string is then tokenized whole."""
    ours, hf = pair
    messages, media, options = CHATS[name]
    output, text = run_hf(hf, messages, media, options)
    items = items_of(output, media)
    for item in items:
        t, h, w = item.grid_thw or (0, 0, 0)
        if item.modality is Modality.IMAGE:
            text = text.replace("<|image_pad|>", "<|done|>" * (h * w // 4), 1)
            continue
        times = [*item.timestamps, item.timestamps[-1]]
        pads = "<|moved|>" * (h * w // 4)
        frames = "".join(
            f"<{(times[2 * i] + times[2 * i + 1]) / 2:.1f} seconds><|vision_start|>{pads}<|vision_end|>"
            for i in range(t)
        )
        text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", frames, 1)
    text = text.replace("<|done|>", "<|image_pad|>").replace("<|moved|>", "<|video_pad|>")
    arguments = {key: value for key, value in options.items() if key != "add_generation_prompt"}
    made = ours.prepare_chat(messages, items, arguments=arguments, layout=VideoLayout.V4)
    assert list(made.token_ids) == hf.tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("text", "media"),
    [
        ("<|image_pad|>", [(64, 64)]),
        ("a<|image_pad|>b", [(64, 64)]),
        (
            "<|image_pad|>x<|video_pad|>y<|vision_start|><|image_pad|><|vision_end|>",
            [(64, 64), (4, 64, 64, 2.0, range(4)), (96, 64)],
        ),
        ("see <|video_pad|> and", [(4, 64, 64, 3.0, range(4))]),
        ("<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|><|im_end|>", [(6, 64, 64, 2.0, range(6))]),
        ("<tool_call>é<|endoftext|> <think>", []),
    ],
)
def test_raw_prompts_give_the_ids_of_transformers(
    pair: tuple[MultimodalProcessor, Any], text: str, media: list[tuple]
) -> None:
    """A raw text prompt with markers anywhere, bare ones too, gives the ids of transformers' processor."""
    from transformers.video_utils import VideoMetadata

    ours, hf = pair
    clips = [size for size in media if len(size) == 5]
    output = hf(
        text=[text],
        images=[np.zeros((*size, 3), np.uint8) for size in media if len(size) == 2] or None,
        videos=[np.zeros((*size[:3], 3), np.uint8) for size in clips] or None,
        video_metadata=[VideoMetadata(total_num_frames=99, fps=s[3], frames_indices=list(s[4])) for s in clips] or None,
        do_sample_frames=False,
        return_tensors="np",
    )
    made = ours.prepare_text(text, items_of(output, media))
    assert list(made.token_ids) == output["input_ids"][0].tolist()


def test_the_class_default_sampling_gives_the_same_times(pair: tuple[MultimodalProcessor, Any]) -> None:
    """A clip that transformers samples itself is printed with the times that its metadata give."""
    from transformers.video_utils import VideoMetadata

    ours, hf = pair
    metadata = VideoMetadata(total_num_frames=90, fps=29.97)
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    output = hf(
        text=[text],
        videos=[np.zeros((90, 64, 64, 3), np.uint8)],
        video_metadata=[metadata],
        do_sample_frames=True,
        return_metadata=True,
        return_tensors="np",
    )
    sampled = output["video_metadata"][0].frames_indices
    t, h, w = map(int, output["video_grid_thw"][0])
    item = MultimodalItem(
        modality=Modality.VIDEO,
        payload_kind=PayloadKind.PIXELS_U8,
        content_hash=bytes(32),
        grid_thw=(t, h, w),
        timestamps=tuple(int(index) / 29.97 for index in sampled),
    )
    assert list(ours.prepare_text(text, [item]).token_ids) == output["input_ids"][0].tolist()
