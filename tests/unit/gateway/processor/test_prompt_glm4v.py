"""GLM's prompts: a clip's frames are pictures with times behind them, between the clip's own markers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tokenizers

from gateway.media.rules import CLASS_DEFAULTS
from gateway.processor.chat_template import ChatTemplate
from gateway.processor.glm4v import Glm4vProcessor, Glm4vTokens, Glm46VProcessor
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.prompt import Prompt, VideoLayout
from gateway.processor.registry import REGISTRY, load_processor
from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition, InvalidArgument, ServeError
from tessera.items import ItemGeometry, MultimodalItem
from tessera.modality import Modality
from tests.tiny_glm4v import CHAT_TEMPLATE, build_tokenizer
from tests.unit.gateway.processor.prompt_fixtures import image, video

IMAGE, VIDEO = "<|image|>", "<|video|>"
START, END = "<|begin_of_image|>", "<|end_of_image|>"
CLIP_START, CLIP_END = "<|begin_of_video|>", "<|end_of_video|>"


@cache
def tokenizer() -> Tokenizer:
    """The tiny checkpoints' tokenizer."""
    return Tokenizer(build_tokenizer(), {"eos_token": "<|endoftext|>"})


@cache
def processor(kind: type[Glm4vProcessor] = Glm4vProcessor) -> Glm4vProcessor:
    """A processor with the tiny checkpoints' template."""
    return kind(
        architecture="Glm4vForConditionalGeneration",
        tokenizer=tokenizer(),
        template=ChatTemplate(CHAT_TEMPLATE, tokenizer()),
        rules=CLASS_DEFAULTS[kind.media_family][0],
        geometry=ItemGeometry(14, 2, 2, 64),
        tokens=Glm4vTokens.of(tokenizer(), {}),
        vocab_size=640,
    )


def ids_of(text: str) -> tuple[int, ...]:
    """Encode, special tokens as tokens."""
    return tuple(tokenizer().encode(text, allow_special=True))


IMAGE_ID, VIDEO_ID = ids_of(IMAGE + VIDEO)


def prepare(prompt: str | Sequence[int], items: Sequence[MultimodalItem]) -> Prompt:
    if isinstance(prompt, str):
        return processor().prepare_text(prompt, items)
    return processor().prepare_token_ids(prompt, items)


@pytest.mark.parametrize("as_ids", [False, True])
@pytest.mark.parametrize(
    ("prompt", "items", "expanded"),
    [
        ("a", [], "a"),
        (IMAGE, [image(4, 6)], IMAGE * 6),
        (IMAGE * 2, [image(2, 4), image(4, 4)], IMAGE * 6),
        (f"{START}{IMAGE}{END}", [image(2, 4)], f"{START}{IMAGE * 2}{END}"),
        (
            f"{CLIP_START}{VIDEO}{CLIP_END}",
            [video(2, 2, 4)],
            f"{CLIP_START}{START}{IMAGE * 2}{END}0{START}{IMAGE * 2}{END}1{CLIP_END}",
        ),
        (
            f"a{CLIP_START}b{VIDEO}c{CLIP_END}{IMAGE}",
            [video(1, 2, 2, times=(3.99,)), image(2, 2)],
            f"a{CLIP_START}b{START}{IMAGE}{END}3c{CLIP_END}{IMAGE}",
        ),
    ],
)
def test_markers_expand_in_order(prompt: str, items: list[MultimodalItem], expanded: str, as_ids: bool) -> None:
    """The n-th marker takes the n-th item; frames are filled with the picture's placeholder; ranges cover it alone."""
    made = prepare(ids_of(prompt) if as_ids else prompt, items)
    assert made.token_ids == ids_of(expanded)
    covered = {i for item in made.items for span in item.ranges for i in range(span.offset, span.end)}
    assert covered == {i for i, token in enumerate(made.token_ids) if token == IMAGE_ID}
    assert [item.num_tokens for item in made.items] == [processor().expected_tokens(item) for item in items]


@pytest.mark.parametrize(
    ("times", "plain", "decimal"),
    [
        ((0.0, 0.5, 1.0, 1.5), "01", "0.0 seconds,1.0 seconds"),
        ((0.25, 9.0, 1.999, 9.0), "01", "0.2 seconds,2.0 seconds"),
        ((29.999999999999996, 30.0, 60.05), "2960", "30.0 seconds,60.0 seconds"),
    ],
)
def test_times_are_those_of_the_first_frames(times: tuple[float, ...], plain: str, decimal: str) -> None:
    """GLM-4.1V cuts them to whole seconds, GLM-4.6V rounds them to a decimal; a lone last frame has its own."""
    clip = video(2, 2, 2, times=tuple(sorted(times)))
    clip = replace(clip, timestamps=times)
    marked = f"{CLIP_START}{VIDEO}{CLIP_END}"
    made = processor().prepare_text(marked, [clip])
    assert tokenizer().decode(made.token_ids) == plain
    made = processor(Glm46VProcessor).prepare_text(marked, [clip])
    first, second = decimal.split(",")
    frames = f"{START}{IMAGE}{END}{first}{START}{IMAGE}{END}{second}"
    assert made.token_ids == ids_of(f"{CLIP_START}{frames}{CLIP_END}")


def test_the_last_time_joins_the_text_behind_it() -> None:
    """Between two special tokens text is encoded whole, so digits typed behind the frames merge with the last time."""
    content = json.loads(build_tokenizer().to_str())
    content["model"]["vocab"]["12"] = 639
    content["model"]["merges"].append(["1", "2"])
    merging = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    made = Glm4vProcessor(
        architecture="Glm4vForConditionalGeneration",
        tokenizer=merging,
        template=None,
        rules=CLASS_DEFAULTS["glm4v"][0],
        geometry=ItemGeometry(14, 2, 2, 64),
        tokens=Glm4vTokens.of(merging, {}),
        vocab_size=640,
    ).prepare_text(f"{CLIP_START}{VIDEO}23{CLIP_END}", [video(1, 2, 2, times=(1.0, 1.5))])
    frame = f"{CLIP_START}{START}{IMAGE}{END}123{CLIP_END}"
    assert made.token_ids == tuple(merging.encode(frame, allow_special=True))
    assert 639 in made.token_ids


@pytest.mark.parametrize("layout", VideoLayout)
def test_both_layouts_are_one(layout: VideoLayout) -> None:
    """transformers 4.57 wrote GLM's clips as 5.x does."""
    made = processor().prepare_text(f"{CLIP_START}{VIDEO}{CLIP_END}", [video(1, 2, 2)], layout)
    assert made.token_ids == ids_of(f"{CLIP_START}{START}{IMAGE}{END}0{CLIP_END}")


def test_chat_takes_items_in_order_and_leaves_typed_markers_alone() -> None:
    """System and assistant reach the template as strings; typed placeholders are text everywhere."""
    messages = [
        ChatMessage("system", (TextPart("Be "), TextPart(f"brief{IMAGE}"))),
        ChatMessage("user", (TextPart(f"{VIDEO} or "), MediaPart(Modality.VIDEO), MediaPart(Modality.IMAGE))),
        ChatMessage("assistant", (TextPart(f"{CLIP_START}ok"),)),
        ChatMessage("tool", (MediaPart(Modality.IMAGE),)),
    ]
    made = processor().prepare_chat(messages, [video(1, 2, 2), image(2, 4), image(2, 2)])
    assert made.text == (
        f"[gMASK]<sop><|system|>\nBe brief{IMAGE}<|user|>\n{VIDEO} or {CLIP_START}{VIDEO}{CLIP_END}{START}{IMAGE}{END}"
        f"<|assistant|>\n{CLIP_START}ok<|observation|>\n{START}{IMAGE}{END}<|assistant|>\n"
    )
    assert [item.num_tokens for item in made.items] == [1, 2, 1]
    assert made.token_ids.count(IMAGE_ID) == 4
    assert made.token_ids.count(ids_of(CLIP_START)[0]) == 1


STILLS = [image(2, 2, (7, 1)), image(2, 2, (11, 1))]
EXPANDED = [*ids_of(f"a{START}{IMAGE * 2}{END}{CLIP_START}{START}{IMAGE}{END}0{START}{IMAGE}{END}1{CLIP_END}")]


def test_an_expanded_prompt_is_taken_as_it_is() -> None:
    """Ids and ranges come back unchanged, though picture and frames share one placeholder."""
    items = [image(2, 4, (2, 2)), video(2, 2, 2, (7, 1), (11, 1))]
    assert processor().prepare_token_ids(EXPANDED, items) == Prompt(None, tuple(EXPANDED), tuple(items))
    made = processor().prepare_text(f"{CLIP_START}{VIDEO}{CLIP_END}{IMAGE}", [video(), image()])
    assert processor().prepare_token_ids(made.token_ids, made.items) == replace(made, text=None)


@pytest.mark.parametrize(
    ("prompt", "items", "reason", "field"),
    [
        (EXPANDED, [image(2, 4, (2, 2)), video(1, 2, 2, (7, 1))], "PLACEHOLDER_UNCOVERED", "token_ids.ids[11]"),
        ([*EXPANDED, VIDEO_ID], [image(2, 4, (2, 2)), video(2, 2, 2, (7, 1), (11, 1))], "PLACEHOLDER_UNCOVERED", None),
        (EXPANDED, [image(2, 4, (2, 2)), video(2, 2, 2, (7, 1), (8, 1))], "RANGE_TOKENS", "items[1].ranges[1]"),
        (IMAGE + VIDEO, [video(), image()], "PLACEHOLDER_MODALITY", "items[0].modality"),
        (VIDEO, [video()], "PLACEHOLDER_MODALITY", "items[0].modality"),
        (f"{CLIP_START}{CLIP_END}{VIDEO}", [video()], "PLACEHOLDER_MODALITY", "items[0].modality"),
        (f"{CLIP_START}{IMAGE}{CLIP_END}", [image()], "PLACEHOLDER_MODALITY", "items[0].modality"),
        (
            EXPANDED,
            [video(1, 2, 4, (2, 2)), image(2, 2, (7, 1)), image(2, 2, (11, 1))],
            "PLACEHOLDER_MODALITY",
            "items[0].modality",
        ),
        (
            EXPANDED,
            [image(2, 4, (2, 2)), image(2, 2, (7, 1)), image(2, 2, (11, 1))],
            "PLACEHOLDER_MODALITY",
            "items[1].modality",
        ),
        ([IMAGE_ID] * 2, [image()], "PLACEHOLDER_COUNT", "items"),
        (VIDEO, [replace(video(), timestamps=())], "TIMESTAMPS_REQUIRED", "items[0].timestamps"),
        (VIDEO, [video(2, times=(0.0, 1.0))], "TIMESTAMPS_MISMATCH", "items[0].timestamps"),
        (VIDEO, [video(1, times=(0.0, float("inf")))], "TIMESTAMPS_INVALID", "items[0].timestamps"),
    ],
)
def test_prompts_that_do_not_fit_their_items(
    prompt: str | list[int], items: list[MultimodalItem], reason: str, field: str | None
) -> None:
    """Counts, modalities, times and ranges are refused with their path, as in every family."""
    with pytest.raises(InvalidArgument) as caught:
        prepare(prompt, items)
    assert caught.value.reason == reason
    assert field is None or caught.value.field == field


def checkpoint(path: Path, architecture: str, **config: object) -> Path:
    """Write a checkpoint of one file for pictures and clips, as the published ones that have no second one."""
    build_tokenizer().save(str(path / "tokenizer.json"))
    vision = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64}
    text = {"architectures": [architecture], "text_config": {"vocab_size": 640}, "vision_config": vision}
    (path / "config.json").write_text(json.dumps(text | config))
    sizes = {"patch_size": 14, "size": {"shortest_edge": 12544, "longest_edge": 9633792}, "min_pixels": 1}
    (path / "preprocessor_config.json").write_text(json.dumps(sizes))
    return path


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("Glm4vForConditionalGeneration", Glm4vProcessor),
        ("Glm4vMoeForConditionalGeneration", Glm4vProcessor),
        ("Glm46VForConditionalGeneration", Glm46VProcessor),
    ],
)
def test_a_checkpoint_gives_its_processor(tmp_path: Path, architecture: str, kind: type[Glm4vProcessor]) -> None:
    """Each architecture has its class and family of rules; budgets come from `size` alone."""
    made = load_processor(checkpoint(tmp_path, architecture, image_token_id=IMAGE_ID, video_token_id=VIDEO_ID))
    assert type(made) is kind
    assert REGISTRY.resolve([architecture]) == (architecture, kind)
    assert (made.rules.family, made.rules.factor, made.geometry.num_deepstack_layers) == (kind.media_family, 28, 0)
    assert (made.rules.image_min_pixels, made.rules.image_max_pixels) == (12544, 9633792)
    assert made.rules.video_mean == made.rules.image_mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


@pytest.mark.parametrize("name", ["image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id"])
def test_markers_must_be_those_of_config_json(tmp_path: Path, name: str) -> None:
    """A tokenizer and a config.json that disagree are found at the start."""
    with pytest.raises(ServeError, match=name) as caught:
        load_processor(checkpoint(tmp_path, "Glm4vForConditionalGeneration", **{name: 3}))
    assert isinstance(caught.value, FailedPrecondition)
    assert caught.value.reason == "CHECKPOINT_INCONSISTENT"
