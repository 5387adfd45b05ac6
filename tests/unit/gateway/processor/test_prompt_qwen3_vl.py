"""Qwen3-VL's prompts: placeholders become runs whose ranges are right, and bad prompts name their field."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gateway.processor.chat_template import ChatTemplate
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.prompt import Prompt, VideoLayout
from gateway.processor.vision_tokens import VisionTokens
from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.items import MultimodalItem
from tessera.modality import Modality
from tests.unit.gateway.processor.prompt_fixtures import ids_of, image, processor, tokenizer, video

IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
START, END = "<|vision_start|>", "<|vision_end|>"
IMAGE_ID, VIDEO_ID = (tokenizer().special_tokens[t] for t in (IMAGE, VIDEO))


def spans(prompt: Prompt) -> list[list[tuple[int, int]]]:
    return [[(r.offset, r.length) for r in item.ranges] for item in prompt.items]


def assert_ranges_cover_the_pads(prompt: Prompt) -> None:
    covered = {i for item in prompt.items for r in item.ranges for i in range(r.offset, r.end)}
    assert covered == {i for i, token in enumerate(prompt.token_ids) if token in (IMAGE_ID, VIDEO_ID)}


def prepare(
    prompt: str | Sequence[int], items: Sequence[MultimodalItem], layout: VideoLayout = VideoLayout.V5
) -> Prompt:
    if isinstance(prompt, str):
        return processor().prepare_text(prompt, items, layout)
    return processor().prepare_token_ids(prompt, items, layout)


def refused(prompt: str | Sequence[int], items: Sequence[MultimodalItem]) -> tuple[str, str | None]:
    """The reason and field with which a prompt is refused."""
    with pytest.raises(ServeError) as caught:
        prepare(prompt, items)
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize(
    ("prompt", "items", "expanded"),
    [
        ("a", [], "a"),
        (IMAGE, [image(2, 2)], IMAGE),
        (IMAGE, [image(4, 6)], IMAGE * 6),
        (f"{IMAGE}a{IMAGE}", [image(2, 4), image(2, 2)], f"{IMAGE * 2}a{IMAGE}"),
        (IMAGE * 2, [image(2, 4), image(4, 4)], IMAGE * 6),
        (f"{START}{IMAGE}{END}", [image(2, 4)], f"{START}{IMAGE * 2}{END}"),
        (
            f"{START}{VIDEO}{END}",
            [video(2, 2, 4)],
            f"{START}<0.2 seconds>{START}{VIDEO * 2}{END}<1.2 seconds>{START}{VIDEO * 2}{END}{END}",
        ),
        (
            f"a{START}{VIDEO}{END}b{IMAGE}",
            [video(1, 2, 2, times=(3.0,)), image(2, 2)],
            f"a{START}<3.0 seconds>{START}{VIDEO}{END}{END}b{IMAGE}",
        ),
    ],
)
def test_markers_expand_in_order(prompt: str, items: list[MultimodalItem], expanded: str, as_ids: bool) -> None:
    """The n-th marker takes the n-th item, at the ends, alone and side by side, from text and from ids."""
    made = prepare(ids_of(prompt) if as_ids else prompt, items)
    assert made.token_ids == ids_of(expanded)
    assert made.text == (None if as_ids else prompt)
    assert_ranges_cover_the_pads(made)
    assert [item.num_tokens for item in made.items] == [processor().expected_tokens(item) for item in items]


def test_adjacent_items_are_told_apart_by_their_lengths() -> None:
    """Two images without a separator have two ranges, though their pads form one run."""
    made = processor().prepare_text(IMAGE * 2, [image(2, 4), image(4, 4)])
    assert spans(made) == [[(0, 2)], [(2, 4)]]


def test_a_clip_has_one_range_for_each_pair_of_frames() -> None:
    """Ranges cover pads alone; times and markers stand between them."""
    made = processor().prepare_text(f"{START}{VIDEO}{END}", [video(3, 2, 4)])
    assert [length for _, length in spans(made)[0]] == [2, 2, 2]
    assert_ranges_cover_the_pads(made)


def test_an_odd_clip_repeats_its_last_time() -> None:
    """Three frames make two pairs; the second one's time is its only frame's."""
    made = processor().prepare_text(f"{START}{VIDEO}{END}", [video(2, 2, 2, times=(0.0, 0.5, 1.25))])
    assert made.token_ids == ids_of(f"{START}<0.2 seconds>{START}{VIDEO}{END}<1.2 seconds>{START}{VIDEO}{END}{END}")


@pytest.mark.parametrize("as_ids", [False, True])
def test_layout_v4_replaces_the_markers(as_ids: bool) -> None:
    """In 4.57's layout the clip's own start and end are gone; a bare pad is expanded in place."""
    prompt, item = f"{START}{VIDEO}{END}{START}{VIDEO}{END}x{VIDEO}", video(1, 2, 2)
    pair = f"<0.2 seconds>{START}{VIDEO}{END}"
    made = prepare(ids_of(prompt) if as_ids else prompt, [item] * 3, VideoLayout.V4)
    assert made.token_ids == ids_of(f"{pair}{pair}x") + ids_of(pair)
    assert_ranges_cover_the_pads(made)


def test_text_before_a_clip_merges_with_its_time_in_layout_v4() -> None:
    """Between two special tokens text is encoded whole, as if the finished string were."""
    user = [ChatMessage("user", (TextPart("see: "), MediaPart(Modality.VIDEO)))]
    made = processor().prepare_chat(user, [video(1, 2, 2)], layout=VideoLayout.V4)
    assert made.token_ids == ids_of(
        f"<|im_start|>user\nsee: <0.2 seconds>{START}{VIDEO}{END}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chat_takes_items_in_order_and_leaves_typed_markers_alone() -> None:
    """Typed placeholders are text; the n-th media part takes the n-th item."""
    parts = (TextPart(f"{IMAGE} or "), MediaPart(Modality.IMAGE), TextPart(VIDEO), MediaPart(Modality.VIDEO))
    messages = [ChatMessage("user", parts), ChatMessage("assistant", (TextPart(f"{START}ok"),))]
    made = processor().prepare_chat(messages, [image(2, 4), video(1, 2, 2)], add_generation_prompt=False)
    assert [item.modality for item in made.items] == ["image", "video"]
    assert made.token_ids.count(IMAGE_ID) == 2
    assert made.token_ids.count(VIDEO_ID) == 1
    assert_ranges_cover_the_pads(made)
    assert made.num_tokens(Modality.IMAGE) == 2
    assert tokenizer().decode(made.token_ids).startswith(f"user\n{IMAGE} or {VIDEO}<0.2 seconds>\nassistant\n{START}ok")


def test_tool_messages_take_media() -> None:
    """A tool may answer with a picture."""
    made = processor().prepare_chat([ChatMessage("tool", (MediaPart(Modality.IMAGE),))], [image(2, 2)])
    assert made.num_tokens(Modality.IMAGE) == 1


@pytest.mark.parametrize(
    ("messages", "error", "reason", "field"),
    [
        ([], InvalidArgument, "FIELD_REQUIRED", "messages"),
        ([ChatMessage("robot")], InvalidArgument, "ROLE_INVALID", "messages[0].role"),
        (
            [ChatMessage("user"), ChatMessage("system", (TextPart("a"), MediaPart(Modality.IMAGE)))],
            InvalidArgument,
            "MEDIA_ROLE",
            "messages[1].parts[1].image",
        ),
        (
            [ChatMessage("assistant", (MediaPart(Modality.VIDEO, preprocessed=True),))],
            InvalidArgument,
            "MEDIA_ROLE",
            "messages[0].parts[0].item",
        ),
        (
            [ChatMessage("user", (MediaPart(Modality.TIME_SERIES),))],
            Unimplemented,
            "MODALITY_UNSUPPORTED",
            "messages[0].parts[0].time_series",
        ),
    ],
)
def test_bad_messages_are_refused_before_any_item_is_needed(
    messages: list[ChatMessage], error: type[ServeError], reason: str, field: str
) -> None:
    """Roles and modalities are checked with the path of the part at fault."""
    with pytest.raises(error) as caught:
        processor().render_chat(messages)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_an_item_of_a_chat_is_named_by_its_part() -> None:
    """A preprocessed item's fault has the path of its part."""
    parts = (TextPart("a"), MediaPart(Modality.VIDEO, preprocessed=True))
    item = replace(video(2, 2, 2), timestamps=())
    with pytest.raises(InvalidArgument) as caught:
        processor().prepare_chat([ChatMessage("user", parts)], [item])
    assert caught.value.field == "messages[0].parts[1].item.timestamps"


def test_a_template_that_leaves_a_medium_out_is_an_error() -> None:
    """Media are never dropped: a template without a placeholder for one is refused."""
    made = processor()
    silent = type(made)(
        architecture=made.architecture,
        tokenizer=made.tokenizer,
        template=ChatTemplate("no media here", made.tokenizer),
        rules=made.rules,
        geometry=made.geometry,
        tokens=VisionTokens.of(made.tokenizer, {}),
        vocab_size=made.vocab_size,
    )
    with pytest.raises(InvalidArgument) as caught:
        silent.prepare_chat([ChatMessage("user", (MediaPart(Modality.IMAGE),))], [image()])
    assert caught.value.reason == "TEMPLATE_ERROR"


def test_a_checkpoint_without_a_template_has_no_chat() -> None:
    """Generate still works there; Chat says why it does not."""
    made = processor()
    bare = type(made)(
        architecture=made.architecture,
        tokenizer=made.tokenizer,
        template=None,
        rules=made.rules,
        geometry=made.geometry,
        tokens=VisionTokens.of(made.tokenizer, {}),
        vocab_size=made.vocab_size,
    )
    assert bare.prepare_text("a", []).token_ids == ids_of("a")
    with pytest.raises(FailedPrecondition) as caught:
        bare.render_chat([ChatMessage("user")])
    assert caught.value.reason == "NO_CHAT_TEMPLATE"


@pytest.mark.parametrize(
    ("prompt", "items", "reason", "field"),
    [
        ("", [], "PROMPT_EMPTY", "text"),
        ([], [], "PROMPT_EMPTY", "token_ids.ids"),
        ([1, 2, 640], [], "TOKEN_ID_RANGE", "token_ids.ids[2]"),
        ([1, -1], [], "TOKEN_ID_RANGE", "token_ids.ids[1]"),
        (IMAGE, [], "PLACEHOLDER_COUNT", "items"),
        ("a", [image()], "PLACEHOLDER_COUNT", "items"),
        ([IMAGE_ID] * 2, [image()], "PLACEHOLDER_COUNT", "items"),
        (IMAGE + VIDEO, [video(), image()], "PLACEHOLDER_MODALITY", "items[0].modality"),
        (IMAGE, [image(2, 2, (0, 1))], "RANGES_WITH_TEXT", "items[0].ranges"),
        ([IMAGE_ID] * 2, [image(2, 2, (0, 1)), image(2, 2)], "RANGES_MIXED", "items[1].ranges"),
        (IMAGE, [image(3, 2)], "GRID_INVALID", "items[0].grid_thw"),
        (IMAGE, [replace(image(), grid_thw=None)], "GRID_REQUIRED", "items[0].grid_thw"),
        (IMAGE, [replace(image(), grid_thw=(2, 2, 2))], "GRID_INVALID", "items[0].grid_thw.t"),
        (VIDEO, [replace(video(), timestamps=())], "TIMESTAMPS_REQUIRED", "items[0].timestamps"),
        (VIDEO, [video(2, times=(0.0, 1.0))], "TIMESTAMPS_MISMATCH", "items[0].timestamps"),
        (VIDEO, [video(1, times=(0.0, float("nan")))], "TIMESTAMPS_INVALID", "items[0].timestamps"),
        (VIDEO, [video(1, times=(0.0, 1e300))], "TIMESTAMPS_INVALID", "items[0].timestamps"),
    ],
)
def test_prompts_that_do_not_fit_their_items(
    prompt: str | list[int], items: list[MultimodalItem], reason: str, field: str
) -> None:
    """Counts, modalities, grids, times and ids are refused with their path."""
    assert refused(prompt, items) == (reason, field)


PADS = [1, IMAGE_ID, IMAGE_ID, 1, VIDEO_ID, 1, VIDEO_ID, 1]


def test_an_expanded_prompt_is_taken_as_it_is() -> None:
    """Ids and ranges of an expanded prompt come back unchanged; so Prepare's output runs as it was prepared."""
    items = [image(2, 4, (1, 2)), video(2, 2, 2, (4, 1), (6, 1), times=(0.0, 0.5, 1.0))]
    assert processor().prepare_token_ids(PADS, items) == Prompt(None, tuple(PADS), tuple(items))
    assert processor().prepare_token_ids(PADS, [items[0], replace(items[1], timestamps=())]).token_ids == tuple(PADS)
    made = processor().prepare_text(f"{START}{VIDEO}{END}{IMAGE}", [video(), image()])
    assert processor().prepare_token_ids(made.token_ids, made.items) == replace(made, text=None)


@pytest.mark.parametrize(
    ("items", "reason", "field"),
    [
        ([image(2, 4, (1, 1), (2, 1))], "RANGE_COUNT", "items[0].ranges"),
        ([image(2, 4, (1, 2)), video(2, 2, 2, (4, 3))], "RANGE_COUNT", "items[1].ranges"),
        ([image(2, 4, (1, 3))], "RANGE_LENGTH", "items[0].ranges[0]"),
        ([image(2, 4, (2, 2))], "RANGE_TOKENS", "items[0].ranges[0]"),
        ([image(2, 2, (4, 1))], "RANGE_TOKENS", "items[0].ranges[0]"),
        ([image(2, 2, (-1, 1))], "RANGE_BOUNDS", "items[0].ranges[0]"),
        ([image(2, 2, (8, 1))], "RANGE_BOUNDS", "items[0].ranges[0]"),
        ([image(2, 2, (1, 0))], "RANGE_BOUNDS", "items[0].ranges[0]"),
        ([image(2, 4, (1, 2)), video(2, 2, 2, (6, 1), (4, 1))], "RANGE_ORDER", "items[1].ranges[1]"),
        ([video(2, 2, 2, (4, 1), (6, 1)), image(2, 4, (1, 2))], "RANGE_ORDER", "items[1].ranges[0]"),
        ([image(2, 4, (1, 2)), image(2, 4, (1, 2))], "RANGE_ORDER", "items[1].ranges[0]"),
        ([image(2, 4, (1, 2)), video(1, 2, 2, (4, 1))], "PLACEHOLDER_UNCOVERED", "token_ids.ids[6]"),
        ([image(2, 3, (1, 2))], "GRID_INVALID", "items[0].grid_thw"),
    ],
)
def test_ranges_that_do_not_fit_the_prompt(items: list[MultimodalItem], reason: str, field: str) -> None:
    """Order, bounds, lengths, tokens and coverage of ranges are refused with the path of the range."""
    assert refused(PADS, items) == (reason, field)


def test_markers_must_be_those_of_config_json() -> None:
    """A tokenizer and a config.json that disagree are found at the start."""
    assert VisionTokens.of(tokenizer(), {"image_token_id": IMAGE_ID}).image == IMAGE_ID
    with pytest.raises(FailedPrecondition) as caught:
        VisionTokens.of(tokenizer(), {"image_token_id": IMAGE_ID + 1})
    assert caught.value.reason == "CHECKPOINT_INCONSISTENT"
