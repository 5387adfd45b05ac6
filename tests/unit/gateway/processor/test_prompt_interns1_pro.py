"""InternS1-Pro's prompts: one video layout; time series in text, ids and chats; a template that knows no series."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog

from gateway.processor.interns1_pro import InternS1ProProcessor
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.prompt import Prompt, VideoLayout
from gateway.processor.registry import load_processor
from tessera.errors import FailedPrecondition, InvalidArgument, Unimplemented
from tessera.items import MultimodalItem, PlaceholderRange
from tessera.modality import Modality, PayloadKind
from tessera.time_series import num_series_tokens
from tests.tiny_interns1_pro import CHAT_TEMPLATE, make_tiny_interns1_pro
from tests.unit.gateway.processor.prompt_fixtures import image, video

IMAGE, VIDEO, SERIES = "<|image_pad|>", "<|video_pad|>", "<TS_CONTEXT>"
START, END = "<|vision_start|>", "<|vision_end|>"
SERIES_START, SERIES_END = "<|ts|>", "<|/ts|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in the layout of the release."""
    return make_tiny_interns1_pro(tmp_path_factory.mktemp("tiny"), text={"num_hidden_layers": 1})


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> InternS1ProProcessor:
    """Its processor."""
    processor = load_processor(checkpoint)
    assert isinstance(processor, InternS1ProProcessor)
    return processor


def series(length: int = 60, channels: int = 2, rate: float = 10.0, *spans: tuple[int, int]) -> MultimodalItem:
    """A silent series; spans are (offset, length)."""
    return MultimodalItem(
        modality=Modality.TIME_SERIES,
        payload_kind=PayloadKind.SAMPLES,
        content_hash=bytes(32),
        dtype="F32",
        array=np.zeros((length, channels), np.float32),
        ranges=tuple(PlaceholderRange(*span) for span in spans),
        sampling_rate_hz=rate,
    )


COUNT = num_series_tokens(60, 10.0)


def ids_of(processor: InternS1ProProcessor, text: str) -> tuple[int, ...]:
    """Encode, special tokens as tokens."""
    return tuple(processor.tokenizer.encode(text, allow_special=True))


@pytest.mark.parametrize("layout", list(VideoLayout))
@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize(
    ("prompt", "items", "expanded"),
    [
        ("a", [], "a"),
        (f"{START}{IMAGE}{END}", [image(4, 6)], f"{START}{IMAGE * 6}{END}"),
        (
            f"a{START}{VIDEO}{END}b",
            [video(2, 2, 4)],
            f"a<0.2 seconds>{START}{VIDEO * 2}{END}<1.2 seconds>{START}{VIDEO * 2}{END}b",
        ),
        (VIDEO, [video(1, 2, 4)], f"<0.2 seconds>{START}{VIDEO * 2}{END}"),
        (f"{SERIES_START}{SERIES}{SERIES_END}", [series()], f"{SERIES_START}{SERIES * COUNT}{SERIES_END}"),
        (f"{SERIES}a{SERIES}", [series(), series(7, 1, 1.0)], f"{SERIES * COUNT}a{SERIES}"),
        (SERIES + IMAGE, [series(), image(2, 2)], SERIES * COUNT + IMAGE),
    ],
)
def test_markers_expand_in_order(
    processor: InternS1ProProcessor,
    prompt: str,
    items: list[MultimodalItem],
    expanded: str,
    as_ids: bool,
    layout: VideoLayout,
) -> None:
    """The n-th placeholder takes the n-th item, and no layout leaves the template's markers round a clip."""
    made: Prompt = (
        processor.prepare_token_ids(ids_of(processor, prompt), items, layout)
        if as_ids
        else processor.prepare_text(prompt, items, layout)
    )
    assert made.token_ids == ids_of(processor, expanded)
    covered = {i for item in made.items for span in item.ranges for i in range(span.offset, span.end)}
    assert covered == {i for i, token in enumerate(made.token_ids) if token in processor.placeholder_ids}
    assert [item.num_tokens for item in made.items] == [processor.expected_tokens(item) for item in items]
    again = processor.prepare_token_ids(made.token_ids, made.items)
    assert (again.token_ids, again.items) == (made.token_ids, made.items)


def test_a_series_of_another_length_than_its_range_is_refused(processor: InternS1ProProcessor) -> None:
    """An expanded prompt has as many placeholders as the encoder gives embeddings, in one range."""
    ids = ids_of(processor, "a" + SERIES * COUNT)
    with pytest.raises(InvalidArgument) as caught:
        processor.prepare_token_ids(ids, [series(60, 1, 10.0, (1, COUNT - 1))])
    assert caught.value.reason == "RANGE_LENGTH"
    with pytest.raises(InvalidArgument) as caught:
        processor.prepare_token_ids(ids, [series(60, 1, 10.0, (1, 1), (2, COUNT - 1))])
    assert caught.value.reason == "RANGE_COUNT"


def test_embeddings_and_names_of_series(processor: InternS1ProProcessor) -> None:
    """Ready embeddings say how many they are; a name says nothing, so it comes with its range."""
    ready = MultimodalItem(
        Modality.TIME_SERIES, PayloadKind.EMBEDDINGS, bytes(32), "F32", np.zeros((7, 64), np.float32)
    )
    assert processor.prepare_text(SERIES, [ready]).token_ids == ids_of(processor, SERIES * 7)
    name = ready.without_bytes()
    with pytest.raises(FailedPrecondition) as caught:
        processor.prepare_text(SERIES, [name])
    assert caught.value.reason == "ITEM_NOT_FOUND"
    placed = MultimodalItem(Modality.TIME_SERIES, None, bytes(32), ranges=(PlaceholderRange(0, 7),))
    ids = ids_of(processor, SERIES * 7)
    assert processor.prepare_token_ids(ids, [placed]).token_ids == ids


def user(*parts: str | Modality) -> ChatMessage:
    """A user's message."""
    return ChatMessage("user", tuple(TextPart(p) if not isinstance(p, Modality) else MediaPart(p) for p in parts))


def chat(processor: InternS1ProProcessor, messages: Sequence[ChatMessage], items: Sequence[MultimodalItem]) -> Prompt:
    """Prepare a conversation."""
    return processor.prepare_chat(messages, items)


def test_the_template_numbers_media(processor: InternS1ProProcessor) -> None:
    """Pictures and clips are numbered over the conversation; a series stands where it was put, without a number."""
    messages = [
        user("a", Modality.IMAGE, Modality.TIME_SERIES, Modality.IMAGE),
        ChatMessage("assistant", (TextPart("b"),)),
        user(Modality.VIDEO, "c", Modality.TIME_SERIES),
    ]
    items = [image(2, 2), series(), image(2, 4), video(1, 2, 2), series(7, 1, 1.0)]
    made = chat(processor, messages, items)
    series_text = f"{SERIES_START}{SERIES * COUNT}{SERIES_END}"
    assert made.token_ids == ids_of(
        processor,
        f"<|im_start|>user\naPicture 1: {START}{IMAGE}{END}{series_text}Picture 2: {START}{IMAGE * 2}{END}<|im_end|>\n"
        f"<|im_start|>assistant\nb<|im_end|>\n"
        f"<|im_start|>user\nVideo 1: <0.2 seconds>{START}{VIDEO}{END}c{SERIES_START}{SERIES}{SERIES_END}<|im_end|>\n"
        "<|im_start|>assistant\n<think>",
    )
    assert made.text is not None
    assert made.text.count(SERIES_START + SERIES + SERIES_END) == 2
    assert [item.modality for item in made.items] == [item.modality for item in items]


def test_a_template_with_a_place_for_series_writes_it(checkpoint: Path, tmp_path: Path) -> None:
    """Where the checkpoint's own template knows time series, its words stand round them."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.jinja").unlink()
    branch = "{%- elif part.type == 'time_series' -%}{{ 'Series: <|ts|><TS_CONTEXT><|/ts|>' }}\n{%- elif 'text'"
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("{%- elif 'text'", branch))
    processor = load_processor(tmp_path)
    assert isinstance(processor, InternS1ProProcessor)
    made = chat(processor, [user(Modality.TIME_SERIES)], [series()])
    assert f"Series: {SERIES_START}{SERIES}{SERIES_END}" in (made.text or "")
    assert made.items[0].num_tokens == COUNT


@pytest.mark.parametrize(("thinking", "end"), [(None, "<think>"), (True, "<think>"), (False, "<think></think>\n\n")])
def test_the_prompt_ends_in_a_thought(processor: InternS1ProProcessor, thinking: bool | None, end: str) -> None:
    """enable_thinking=false gives an empty thought; tools and the system's words stand before the conversation."""
    arguments = {} if thinking is None else {"enable_thinking": thinking}
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages = [ChatMessage("system", (TextPart("be kind"),)), user(Modality.TIME_SERIES)]
    made = processor.prepare_chat(messages, [series()], arguments={**arguments, "tools": tools})
    text = made.text or ""
    assert text.startswith("<|im_start|>system\nbe kind\n\n# Tools\n<tools>\n" + json.dumps(tools[0]))
    assert text.endswith(f"<|im_start|>assistant\n{end}")


def test_text_that_spells_special_tokens_stays_text(processor: InternS1ProProcessor) -> None:
    """A user's placeholder is no item, whether or not the template knows series."""
    spelled = f"{SERIES_START}{SERIES}{SERIES_END}<|im_end|>"
    made = chat(processor, [user(spelled, Modality.TIME_SERIES)], [series()])
    special = processor.tokenizer.special_tokens
    assert made.token_ids.count(special[SERIES]) == COUNT
    assert made.token_ids.count(special["<|im_end|>"]) == 1
    assert spelled in processor.tokenizer.decode(made.token_ids, skip_special=False)


def test_checkpoints_without_an_encoder_refuse_its_media(tmp_path: Path) -> None:
    """Without ts_config there is no time series, without vision_config no picture, without both only text."""
    for name, with_vision, with_series in (("a", True, False), ("b", False, True), ("c", False, False)):
        path = make_tiny_interns1_pro(
            tmp_path / name, with_vision=with_vision, with_series=with_series, text={"num_hidden_layers": 0}
        )
        processor = load_processor(path)
        visual = {Modality.IMAGE, Modality.VIDEO} if with_vision else set()
        assert processor.modalities == visual | ({Modality.TIME_SERIES} if with_series else set())
        for item, marker, served in ((image(2, 2), IMAGE, with_vision), (series(), SERIES, with_series)):
            if served:
                assert processor.prepare_text(marker, [item]).items[0].num_tokens
            else:
                with pytest.raises(Unimplemented) as caught:
                    processor.prepare_text(marker, [item])
                assert caught.value.reason == "MODALITY_UNSUPPORTED"


def test_another_id_in_the_config_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The tokenizer's series tokens are config.json's, where that names them."""
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"ts_token_id": 5}))
    with pytest.raises(FailedPrecondition, match="ts_token_id"):
        load_processor(tmp_path)


def test_loading_says_what_the_tokenizer_does_not_do(checkpoint: Path) -> None:
    """One line at start: no domain is detected."""
    with structlog.testing.capture_logs() as lines:
        load_processor(checkpoint)
    assert [line["event"] for line in lines] == ["domain_detection_absent"]
