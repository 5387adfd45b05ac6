"""Registry: a checkpoint directory becomes its family's processor, or an error that says what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.processor.registry import load_processor
from tessera.errors import FailedPrecondition, ServeError, Unimplemented
from tests.tiny_models import CHAT_TEMPLATE
from tests.unit.gateway.processor.prompt_fixtures import tokenizer, write_checkpoint_tokenizer

SIZES = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 4096, "longest_edge": 9216},
}
VISION = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 64}
CONFIG = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": tokenizer().special_tokens["<|image_pad|>"],
    "text_config": {"vocab_size": 640},
    "vision_config": VISION | {"deepstack_visual_indexes": [0, 1]},
}


def checkpoint(path: Path, **files: Any) -> Path:
    """Write a checkpoint; files overrides one by its name without suffix, None leaves it out."""
    write_checkpoint_tokenizer(path)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name, content in ({"config": CONFIG, "preprocessor_config": SIZES} | files).items():
        if content is not None:
            (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_checkpoint_gives_its_processor(tmp_path: Path) -> None:
    """Geometry, vocabulary and rules come from the checkpoint's files."""
    made = load_processor(checkpoint(tmp_path))
    assert made.architecture == CONFIG["architectures"][0]
    assert (made.geometry.merge_size, made.geometry.num_deepstack_layers, made.vocab_size) == (2, 2, 640)
    assert made.rules.image_max_pixels == made.rules.video_max_pixels == 9216


def test_nested_processor_files_win(tmp_path: Path) -> None:
    """transformers 5 saves both processors inside processor_config.json."""
    nested = SIZES | {"size": {"shortest_edge": 1024, "longest_edge": 2048}}
    made = load_processor(checkpoint(tmp_path, processor_config={"video_processor": nested}))
    assert (made.rules.image_max_pixels, made.rules.video_max_pixels) == (9216, 2048)


def test_an_architecture_that_is_not_served_names_those_that_are(tmp_path: Path) -> None:
    """The error helps: it lists the families."""
    with pytest.raises(Unimplemented, match="Qwen3VLForConditionalGeneration") as caught:
        load_processor(checkpoint(tmp_path, config=CONFIG | {"architectures": ["LlamaForCausalLM"]}))
    assert caught.value.reason == "ARCHITECTURE_UNSUPPORTED"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config": None}, "CHECKPOINT_INCOMPLETE"),
        ({"config": "{"}, "CHECKPOINT_INVALID"),
        ({"config": "[]"}, "CHECKPOINT_INVALID"),
        ({"config": CONFIG | {"vision_config": {}}}, "CHECKPOINT_INVALID"),
        ({"config": CONFIG | {"image_token_id": 3}}, "CHECKPOINT_INCONSISTENT"),
        ({"config": CONFIG | {"vision_config": VISION | {"patch_size": 14}}}, "CHECKPOINT_INCONSISTENT"),
        ({"preprocessor_config": None}, "CHECKPOINT_INCOMPLETE"),
        ({"preprocessor_config": SIZES | {"do_resize": False}}, "CHECKPOINT_UNSUPPORTED"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_fails_at_the_start(tmp_path: Path, files: dict, reason: str) -> None:
    """What is missing or inconsistent is found when the gateway starts, not in a request."""
    with pytest.raises(ServeError) as caught:
        load_processor(checkpoint(tmp_path, **files))
    assert isinstance(caught.value, FailedPrecondition)
    assert caught.value.reason == reason
