"""Registry: a checkpoint directory becomes its family's processor, or an error that says what is missing."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.processor.messages import ChatMessage, MediaPart, TextPart
from gateway.processor.qwen3_vl import Qwen3VLProcessor
from gateway.processor.registry import Registry, load_processor
from tessera.errors import FailedPrecondition, ServeError, Unimplemented
from tessera.modality import Modality
from tests.tiny_models import CHAT_TEMPLATE
from tests.unit.gateway.processor.prompt_fixtures import ids_of, image, tokenizer, write_checkpoint_tokenizer

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


@pytest.mark.parametrize(
    "name",
    ["LlamaForCausalLM", "Qwen3VLForConditionalGenerationX", "Qwen3VL", "InternS2PreviewForConditionalGeneration"],
)
def test_an_architecture_that_is_not_served_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """The error names it and lists the families; a name is never matched in part, whatever it begins with."""
    with pytest.raises(Unimplemented, match=f"{name} is not served.*Qwen3VLForConditionalGeneration") as caught:
        load_processor(checkpoint(tmp_path, config=CONFIG | {"architectures": [name]}))
    assert caught.value.reason == "ARCHITECTURE_UNSUPPORTED"


def test_the_first_served_architecture_counts(tmp_path: Path) -> None:
    """A config.json may name several; one without any is refused."""
    names = ["InternS2PreviewForConditionalGeneration", "Qwen3VLForConditionalGeneration"]
    assert load_processor(checkpoint(tmp_path, config=CONFIG | {"architectures": names})).architecture == names[1]
    with pytest.raises(Unimplemented, match="none"):
        load_processor(checkpoint(tmp_path, config=CONFIG | {"architectures": None}))


def test_a_second_registration_warns_and_serves() -> None:
    """The warning names both classes, and the newer one is loaded."""
    registry = Registry()
    registry.register("A", "gateway.processor.qwen3_vl:Older")
    with pytest.warns(UserWarning, match="A was served by .*:Older; .*:Qwen3VLProcessor serves it now"):
        registry.register("A", "gateway.processor.qwen3_vl:Qwen3VLProcessor")
    assert registry.resolve(["B", "A"]) == ("A", Qwen3VLProcessor)
    assert registry.architectures == ("A",)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": CONFIG["architectures"], "text_config": {"vocab_size": 640}},
        {"architectures": CONFIG["architectures"], "vocab_size": 640},
    ],
)
def test_a_checkpoint_without_vision_serves_text(tmp_path: Path, config: dict) -> None:
    """No vision_config: no processor files are needed, and every medium is refused by its modality."""
    made = load_processor(checkpoint(tmp_path, config=config, preprocessor_config=None))
    assert (made.modalities, made.vocab_size) == (frozenset(), 640)
    assert made.prepare_chat([ChatMessage("user", (TextPart("a<|image_pad|>"),))], []).items == ()
    assert made.prepare_token_ids(ids_of("a<|image_pad|>"), []).token_ids == ids_of("a<|image_pad|>")
    with pytest.raises(Unimplemented) as caught:
        made.prepare_text("<|image_pad|>", [image()])
    assert (caught.value.reason, caught.value.field) == ("MODALITY_UNSUPPORTED", "items[0].modality")
    with pytest.raises(Unimplemented) as caught:
        made.render_chat([ChatMessage("user", (MediaPart(Modality.IMAGE),))])
    assert caught.value.field == "messages[0].parts[0].image"


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
