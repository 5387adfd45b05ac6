"""What is read from a checkpoint's JSON files.

Next: tests/unit/worker/models/test_qwen3_vl.py
"""

import json
from pathlib import Path
from typing import Any

import pytest

from worker.models.base import GenerationDefaults
from worker.models.checkpoint import CheckpointError
from worker.models.config import rope_parameters
from worker.models.info import read_generation_defaults, read_processor_limits, read_token_id, read_token_ids
from worker.models.qwen3_vl_config import parse_text_config


def write(path: Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file of the checkpoint."""
    (path / name).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["eos", "bos", "pad"])
def test_ids_come_from_the_nearest_source(name: str, tmp_path: Path) -> None:
    """generation_config.json wins over the text config, which wins over config.json, which wins over the tokenizer."""
    key = f"{name}_token_id"
    write(tmp_path, "tokenizer_config.json", {f"{name}_token": {"content": "<end>"}})
    write(tmp_path, "tokenizer.json", {"added_tokens": [{"id": 7, "content": "<x>"}, {"id": 9, "content": "<end>"}]})
    assert read_token_ids(tmp_path, {}, name) == (9,)
    assert read_token_ids(tmp_path, {key: 3, "text_config": {}}, name) == (3,)
    assert read_token_ids(tmp_path, {key: 3, "text_config": {key: 4}}, name) == (4,)
    write(tmp_path, "generation_config.json", {key: [1, 2]})
    assert read_token_ids(tmp_path, {"text_config": {key: 4}}, name) == (1, 2)
    assert read_token_id(tmp_path, {"text_config": {key: 4}}, name) == 1


def test_no_stop_id_anywhere(tmp_path: Path) -> None:
    """A checkpoint without any has none."""
    assert read_token_ids(tmp_path, {}, "eos") == ()


def test_generation_defaults(tmp_path: Path) -> None:
    """What the file says is taken over; without a file everything is greedy."""
    assert read_generation_defaults(tmp_path) == GenerationDefaults()
    written = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    write(tmp_path, "generation_config.json", written)
    assert read_generation_defaults(tmp_path) == GenerationDefaults(True, 0.7, 0.8, 20, 1.05)


def test_sampling_without_top_k_takes_transformers_default(tmp_path: Path) -> None:
    """A file that samples and leaves top-k out means 50, as its author saw it."""
    write(tmp_path, "generation_config.json", {"do_sample": True})
    assert read_generation_defaults(tmp_path).top_k == 50


def test_processor_limits(tmp_path: Path) -> None:
    """Budgets are read per modality; a clip takes the image's statistics where it has none of its own."""
    assert read_processor_limits(tmp_path, "video", 7).max_pixels == 7
    image = {"size": {"longest_edge": 100}, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    write(tmp_path, "preprocessor_config.json", image)
    write(tmp_path, "video_preprocessor_config.json", {"size": {"longest_edge": 900}})
    assert read_processor_limits(tmp_path, "image", 7).max_pixels == 100
    video = read_processor_limits(tmp_path, "video", 7)
    assert video.max_pixels == 900
    assert video.statistics.mean == (0.1, 0.2, 0.3)


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A deviation of zero, or of another length than the mean, is an error."""
    write(tmp_path, "preprocessor_config.json", {"image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]})
    with pytest.raises(CheckpointError, match="image_std"):
        read_processor_limits(tmp_path, "image", 1)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e6, "rope_scaling": {"mrope_section": [24, 20, 20], "rope_type": "default"}},
        {"rope_theta": 5e6, "rope_scaling": {"mrope_section": [24, 20, 20], "type": "mrope"}},
        {"rope_parameters": {"rope_theta": 5e6, "mrope_section": [24, 20, 20], "rope_type": "default"}},
    ],
)
def test_both_spellings_of_rope(config: dict[str, Any]) -> None:
    """The older and the newer style of config give the same base and sections."""
    theta, parameters = rope_parameters(config, 1e4)
    assert (theta, parameters["mrope_section"]) == (5e6, [24, 20, 20])


def test_a_scaled_rope_is_refused() -> None:
    """A rope type that changes the frequencies is not served, and says so."""
    with pytest.raises(CheckpointError, match="yarn"):
        rope_parameters({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, 1e4)


def test_another_activation_is_refused() -> None:
    """An activation that the layers do not compute is an error, not a silent difference."""
    with pytest.raises(CheckpointError, match="hidden_act"):
        parse_text_config({"hidden_act": "relu"}, tied=True)
