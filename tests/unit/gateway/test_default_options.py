"""What GetModel says of media: the checkpoint's own rules, for the modalities that it has."""

from dataclasses import dataclass

import pytest

from gateway.media.rules import CLASS_DEFAULTS, Family
from gateway.processor.multimodal import MultimodalProcessor
from gateway.served_model import default_options
from tests.unit.gateway.processor import test_prompt_glm4v as glm
from tests.unit.gateway.processor.prompt_fixtures import processor


@dataclass
class TextProcessor:
    """A processor of a checkpoint that takes text alone."""

    modalities = frozenset()
    rules = CLASS_DEFAULTS["qwen"][1]


def test_a_model_of_text_has_no_media_options() -> None:
    """Nothing is said of modalities that it does not have."""
    options = default_options(TextProcessor())  # type: ignore[arg-type]
    assert options.ByteSize() == 0


@pytest.mark.parametrize(
    ("made", "family", "fps"),
    [(processor(), "qwen", 2.0), (glm.processor(), "glm4v", 2.0), (glm.processor(glm.Glm46VProcessor), "glm46v", None)],
)
def test_rules_are_shown(made: MultimodalProcessor, family: Family, fps: float | None) -> None:
    """Budgets, bounds, and the rate where the family's rule has one."""
    options, rules = default_options(made), CLASS_DEFAULTS[family][1]
    assert options.image.max_pixels == made.rules.image_max_pixels
    assert (options.video.max_pixels, options.video.max_frames) == (rules.video_max_pixels, rules.max_frames)
    assert (options.video.fps if options.video.HasField("fps") else None) == fps
