"""Generated prompts against transformers, for every family: the same ids, grids, ranges and printed times.

Sizes, frames and times are those that `Prepare` would use; no pixel is made, so that a picture of 1 by 199 pixels and a
clip of 768 frames cost the same. Pixels are compared in tests/parity/test_media_*.py.

Next: tests/parity/test_processor_tokenizer.py
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.media.options import ImageOptions, ServerLimits, VideoOptions
from gateway.media.plan import resolve_sampling
from gateway.media.problem import MediaProblem
from gateway.media.rules import MediaRules, image_budget, image_size, video_budget, video_size
from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.registry import load_processor
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tests.parity.test_processor_qwen3_vl import runs_of
from tests.tiny_glm4v import make_tiny_glm4v, make_tiny_glm4v_moe
from tests.tiny_interns1_pro import build_intern_tokenizer, make_tiny_interns1_pro
from tests.tiny_models import make_tiny_qwen3vl
from tests.tiny_qwen3_5 import make_tiny_qwen3_5, make_tiny_qwen3_5_moe
from tests.tiny_qwen3_vl_moe import make_tiny_qwen3vl_moe
from tests.torchvision_stub import load_hf_processor

WRAPPED = "<|vision_start|><|video_pad|><|vision_end|>"
"""What 4.57's layout, InternS1-Pro's own, takes the frames of a clip in place of."""
LIMITS = ServerLimits(max_frames=1024, max_source_frames=1 << 20, max_duration_s=1e9)
BUDGETS: dict[str, Any] = {"image_pixels": (4096, 1 << 20), "video_pixels": (4096, 1 << 21)}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen3_vl": lambda path: make_tiny_qwen3vl(path, **BUDGETS),
    "qwen3_vl_moe": lambda path: make_tiny_qwen3vl_moe(path, **BUDGETS),
    "qwen3_5": lambda path: make_tiny_qwen3_5(path, **BUDGETS),
    "qwen3_5_moe": lambda path: make_tiny_qwen3_5_moe(path, **BUDGETS),
    "glm4v": lambda path: make_tiny_glm4v(path, **BUDGETS),
    "glm4v_moe": lambda path: make_tiny_glm4v_moe(path, **BUDGETS),
    "glm46v": lambda path: make_tiny_glm4v(path, family="glm46v", **BUDGETS),
    "interns1_pro": lambda path: make_tiny_interns1_pro(path, **BUDGETS),
}


@dataclass(frozen=True)
class Picture:
    """A picture by its sides."""

    height: int
    width: int


@dataclass(frozen=True)
class Clip:
    """A clip by its sides, its frames and how they are chosen.

    Attributes:
        knob: None, or one of fps, num_frames and frame_indices with its value.
        times: of a list of frames; then all are used.
        is_file: its duration is known.
    """

    height: int
    width: int
    total: int
    fps: float
    knob: tuple[str, Any] | None = None
    times: tuple[float, ...] = ()
    is_file: bool = True


@dataclass(frozen=True)
class Expected:
    """What transformers makes of one medium."""

    grid: tuple[int, int, int]
    text: str


# ---- cases: sides from 1 pixel and aspects up to 199; rates and times that print on a border between two decimals


@st.composite
def sides(draw: st.DrawFn) -> tuple[int, int]:
    """Height and width, each up to 199 times the other."""
    short = draw(st.one_of(st.integers(1, 40), st.integers(1, 3000)))
    long = int(short * draw(st.one_of(st.just(1), st.floats(1, 4), st.floats(1, 199), st.just(199))))
    return draw(st.permutations((short, long)))  # type: ignore[return-value]


RATES = st.one_of(
    st.sampled_from([0.1, 1.0, 2.0, 4.0, 5.0, 10.0, 20.0, 23.976, 24000 / 1001, 25.0, 29.97, 30.0, 40.0, 60.0, 240.0]),
    st.floats(0.1, 240.0),
)
COUNTS = st.one_of(st.integers(1, 9), st.sampled_from([768, 769, 1535]), st.integers(1, 20_000))
KNOBS = st.one_of(
    st.none(),
    st.tuples(st.just("fps"), st.one_of(st.sampled_from([0.5, 1.0, 2.0, 2.5]), st.floats(0.1, 2.5))),
    st.tuples(st.just("num_frames"), st.one_of(st.integers(2, 16), st.just(768), st.integers(2, 768))),
    st.just(("frame_indices", None)),
)


@st.composite
def border_times(draw: st.DrawFn) -> tuple[float, ...]:
    """Ascending times at, just below and just above x.x5 and whole seconds."""
    steps = draw(st.lists(st.integers(0, 2000), min_size=2, max_size=9))
    nudges = draw(st.lists(st.sampled_from([0.0, 1.0, -1.0]), min_size=len(steps), max_size=len(steps)))
    exact = [step * 0.05 for step in steps]
    return tuple(
        sorted(max(0.0, float(np.nextafter(t, np.inf * n)) if n else t) for t, n in zip(exact, nudges, strict=True))
    )


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """A clip that is a file or a list, sampled by the rule, by a knob, or used whole."""
    height, width = draw(sides())
    if draw(st.integers(0, 3)) == 0:
        times = draw(border_times())
        return Clip(height, width, len(times), 1.0, times=times, is_file=False)
    total, fps, knob = draw(COUNTS), draw(RATES), draw(KNOBS)
    if knob is not None and knob[0] == "frame_indices":
        chosen = draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=9, unique=True))
        knob = ("frame_indices", tuple(sorted(chosen)))
    return Clip(height, width, total, fps, knob, is_file=draw(st.booleans()))


TEXTS = st.text(st.sampled_from("ab .,:\n19é字<>|"), max_size=6)
PROMPTS = st.lists(st.one_of(TEXTS, st.builds(lambda size: Picture(*size), sides()), clips()), min_size=1, max_size=4)


# ---- transformers


def smart_resize(processor: Any) -> Callable[..., tuple[int, int]]:
    """The size rule of a processor's own module."""
    return vars(sys.modules[type(processor).__module__])["smart_resize"]


def expect_picture(hf: Any, picture: Picture) -> Expected:
    """Grid and expansion of a picture."""
    processor = hf.image_processor
    factor = processor.patch_size * processor.merge_size
    budget = {"min_pixels": processor.size["shortest_edge"], "max_pixels": processor.size["longest_edge"]}
    if "glm" in type(processor).__name__.lower():
        budget |= {"num_frames": processor.temporal_patch_size, "temporal_factor": processor.temporal_patch_size}
    size = smart_resize(processor)(height=picture.height, width=picture.width, factor=factor, **budget)
    grid = (1, size[0] // processor.patch_size, size[1] // processor.patch_size)
    return Expected(grid, hf.replace_image_token({"image_grid_thw": np.array([grid])}, 0))


def expect_clip(hf: Any, clip: Clip) -> Expected:
    """Grid and expansion of a clip."""
    from transformers.video_utils import VideoMetadata

    processor = hf.video_processor
    duration = clip.total / clip.fps if clip.is_file else None
    metadata = VideoMetadata(total_num_frames=clip.total, fps=clip.fps, duration=duration)
    metadata.frames_indices = list(clip.times) or frames_of(processor, metadata, clip)
    if len(metadata.frames_indices) == 1:
        metadata.frames_indices *= 2  # a clip of one frame is doubled
    depth = processor.temporal_patch_size
    height, width = smart_resize(processor)(
        num_frames=len(metadata.frames_indices),
        height=clip.height,
        width=clip.width,
        temporal_factor=depth,
        factor=processor.patch_size * processor.merge_size,
        min_pixels=processor.size["shortest_edge"],
        max_pixels=processor.size["longest_edge"],
    )
    grid = (-(-len(metadata.frames_indices) // depth), height // processor.patch_size, width // processor.patch_size)
    return Expected(grid, hf.replace_video_token({"video_grid_thw": np.array([grid]), "video_metadata": [metadata]}, 0))


def frames_of(processor: Any, metadata: Any, clip: Clip) -> list[int]:
    """The frames that a clip's rule or knob chooses."""
    name, value = clip.knob or ("", None)
    is_glm = "glm" in type(processor).__name__.lower()
    if name == "frame_indices":
        return list(value)
    if name == "num_frames" and is_glm:  # the oracle ignores it: evenly spread, each frame once
        return np.linspace(0, clip.total - 1, min(value, clip.total)).round().astype(int).tolist()
    if name == "fps" and type(processor).__name__ == "Glm46VVideoProcessor":  # likewise: as GLM-4V
        from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

        return Glm4vVideoProcessor().sample_frames(metadata, fps=value).tolist()
    asked = {name: value} if name else {} if is_glm else {"fps": processor.fps}
    return processor.sample_frames(metadata, **asked).tolist() or [0]


# ---- ours


def item_of(medium: Picture | Clip, rules: MediaRules) -> MultimodalItem:
    """The item that the media pool would make, without its pixels."""
    common: dict[str, Any] = {"payload_kind": PayloadKind.PIXELS_U8, "content_hash": bytes(32)}
    if isinstance(medium, Picture):
        budget = image_budget(ImageOptions(), rules, LIMITS)
        height, width = image_size(medium.height, medium.width, rules, *budget)
        grid = (1, height // rules.patch_size, width // rules.patch_size)
        return MultimodalItem(modality=Modality.IMAGE, grid_thw=grid, **common)
    options = VideoOptions() if medium.knob is None else VideoOptions(**{medium.knob[0]: medium.knob[1]})
    duration = medium.total / medium.fps if medium.is_file else None
    plan = resolve_sampling(medium.total, medium.fps, options, rules, LIMITS, medium.times or None, duration)
    frames = len(plan.frame_indices)
    budget = video_budget(options, rules, LIMITS)
    height, width = video_size(frames, medium.height, medium.width, rules, *budget)
    grid = (-(-frames // rules.temporal_patch_size), height // rules.patch_size, width // rules.patch_size)
    return MultimodalItem(modality=Modality.VIDEO, grid_thw=grid, timestamps=plan.timestamps, **common)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[MultimodalProcessor, Any]:
    """Our processor and transformers' of the same checkpoint."""
    path = FAMILIES[request.param](tmp_path_factory.mktemp("generated") / request.param)
    hf = load_intern_oracle(path) if request.param == "interns1_pro" else load_hf_processor(path)
    return load_processor(path), hf


def load_intern_oracle(path: Path) -> Any:
    """transformers' Qwen3-VL processor with InternS1-Pro's files, as transformers has no classes for it."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**json.loads((path / "preprocessor_config.json").read_text())),
        video_processor=Qwen3VLVideoProcessor(**json.loads((path / "video_preprocessor_config.json").read_text())),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=build_intern_tokenizer()),
        chat_template=(path / "chat_template.jinja").read_text(),
    )


def turns_of(prompt: Sequence[str | Picture | Clip]) -> tuple[ChatMessage, list[dict[str, Any]]]:
    """A prompt as one user's turn: for us, and for transformers."""
    parts = [
        TextPart(part)
        if isinstance(part, str)
        else MediaPart(Modality.IMAGE if isinstance(part, Picture) else Modality.VIDEO)
        for part in prompt
    ]
    content = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": str(part.modality)}
        for part in parts
    ]
    return ChatMessage("user", tuple(parts)), [{"role": "user", "content": content}]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(prompt=PROMPTS)
@example([Picture(1, 199), "a", Picture(199 * 15, 15), Picture(1, 1)])
@example([Clip(1, 199, 20_000, 240.0, ("num_frames", 768))])
@example([Clip(1080, 1920, 1535, 4.0, ("fps", 2.0)), "7", Clip(398, 2, 769, 0.1)])
@example([Clip(64, 64, 4, 1.0, times=(0.05, 0.15, 0.25, 0.45), is_file=False), Clip(9, 9, 1, 24.0)])
@example([Clip(64, 64, 5, 20.0, ("frame_indices", (1, 2, 3, 4))), Clip(64, 64, 99, 10.0, ("frame_indices", (1, 8, 9)))])
def test_generated_prompts_are_those_of_transformers(
    pair: tuple[MultimodalProcessor, Any], prompt: list[str | Picture | Clip]
) -> None:
    """Grids, expanded ids, ranges and times of any prompt are transformers'; what it refuses is refused."""
    ours, hf = pair
    media = [part for part in prompt if not isinstance(part, str)]
    try:
        expected = [expect_picture(hf, m) if isinstance(m, Picture) else expect_clip(hf, m) for m in media]
    except ValueError:
        with pytest.raises(MediaProblem):
            _ = [item_of(medium, ours.rules) for medium in media]
        return
    items = [item_of(medium, ours.rules) for medium in media]
    assert [item.grid_thw for item in items] == [one.grid for one in expected]
    message, spoken = turns_of(prompt)
    text = hf.apply_chat_template(spoken, add_generation_prompt=True)
    replacements = [
        [e.text for m, e in zip(media, expected, strict=True) if isinstance(m, kind)] for kind in (Picture, Clip)
    ]
    unwrapped = ours.architecture.startswith("InternS1Pro")
    marked = text.replace(WRAPPED, "<|video_pad|>") if unwrapped else text
    (whole,), _ = hf.get_text_with_replacements([marked], *replacements)
    ids = hf.tokenizer(whole)["input_ids"]
    made = ours.prepare_chat([message], items)
    assert made.text == text
    assert list(made.token_ids) == ids
    runs = runs_of({"mm_token_type_ids": np.array(hf.create_mm_token_type_ids([ids]))})
    assert [(span.offset, span.length) for item in made.items for span in item.ranges] == runs
    from_ids = ours.prepare_token_ids(hf.tokenizer(text)["input_ids"], items).token_ids
    if unwrapped:  # there a time follows on text, with which it merges unless that came as ids
        assert ours.tokenizer.decode(from_ids, skip_special=False) == hf.tokenizer.decode(ids)
    else:
        assert from_ids == made.token_ids
