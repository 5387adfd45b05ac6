"""The requests that both sides draw."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.vocabulary import build_vocabulary
from benchmarks.workload import PICTURE_SIDE, PICTURE_TOKENS, PROMPT_TOKENS, Workload, picture


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer of the benchmarks' kind."""
    folder = tmp_path_factory.mktemp("model")
    build_vocabulary(1500).save(str(folder / "tokenizer.json"))
    return folder


def test_every_prompt_has_the_same_length(model_dir: Path) -> None:
    """Template, 196 placeholders and text are 271 tokens."""
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    pads = "<|image_pad|>" * PICTURE_TOKENS
    for request in Workload(model_dir).requests(0, 3):
        prompt = (
            f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>{request.text}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert len(tokenizer.encode(prompt).ids) == PROMPT_TOKENS


def test_requests_differ_by_number_alone(model_dir: Path) -> None:
    """Two processes draw the same request for a number, and different ones for different numbers."""
    one, again, next_one = (
        Workload(model_dir).request(5),
        Workload(model_dir).request(5),
        Workload(model_dir).request(6),
    )
    assert one == again
    assert one.picture != next_one.picture and one.text != next_one.text


def test_pictures_are_not_noise() -> None:
    """Neighbouring pixels are alike, as in photographs, so that files have a photograph's size."""
    pixels = picture(0, PICTURE_SIDE, PICTURE_SIDE).astype(np.int16)
    assert np.abs(np.diff(pixels, axis=1)).mean() < 8 < pixels.std()


def test_the_tokenizer_is_nearly_as_long_as_the_embedding() -> None:
    """Every row but a few at the end has its text."""
    size = build_vocabulary(1500).get_vocab_size()
    assert 1500 - 32 < size <= 1500
