"""Encoders without their language model: loaded and run by themselves, and text-only checkpoints without any.

Next: tests/unit/worker/models/test_qwen3_vl.py
"""

from pathlib import Path

import pytest
import torch

from tessera.errors import Unimplemented
from tests.unit.worker.models import checkpoints
from worker.models.base import EncoderInput, EncoderOutput, ItemSize
from worker.models.checkpoint import CheckpointError
from worker.models.loader import load_encoders, load_model


def picture() -> EncoderInput:
    """A picture of noise."""
    pixels = torch.randint(0, 256, (1, 8, 16, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return EncoderInput("image", "pixels_u8", pixels, (1, 2, 4))


def test_the_tower_runs_by_itself(tmp_path: Path) -> None:
    """From a checkpoint without a language model's weights come the whole model's embeddings and DeepStack features."""
    weights = checkpoints.tensors()
    (tmp_path / "whole").mkdir()
    (tmp_path / "tower").mkdir()
    whole = load_model(checkpoints.write(tmp_path / "whole", weights))
    alone = {name: tensor for name, tensor in weights.items() if ".visual." in name}
    [encoder] = load_encoders(checkpoints.write(tmp_path / "tower", alone))
    assert encoder.modalities == ("image", "video")
    [output], [expected] = encoder([picture()]), whole.encode([picture()])
    assert isinstance(output, EncoderOutput)
    assert torch.equal(output.embeddings, expected.embeddings)
    assert output.deepstack is not None
    assert expected.deepstack is not None
    assert torch.equal(output.deepstack, expected.deepstack)


def test_an_encoder_says_what_it_costs(tmp_path: Path) -> None:
    """Tokens, bytes of a token, workspace and weights are told without the language model."""
    [encoder] = load_encoders(checkpoints.write(tmp_path))
    size = ItemSize("image", (1, 2, 4))
    assert encoder.item_tokens(size) == 2
    assert encoder([picture()])[0].size_bytes == 2 * encoder.token_bytes
    assert encoder.weight_bytes > 0
    assert encoder.workspace_bytes(size) < encoder.workspace_bytes(ItemSize("image", (1, 4, 4)))


def test_a_text_only_checkpoint_serves(tmp_path: Path) -> None:
    """Without a vision_config, nested or flat, a model has no modality and no encoder, and refuses items by name."""
    weights = {name: tensor for name, tensor in checkpoints.tensors().items() if ".visual." not in name}
    nested = checkpoints.config()
    del nested["vision_config"]
    flat = nested["text_config"] | {"architectures": nested["architectures"], "tie_word_embeddings": True}
    for number, config in enumerate((nested, flat)):
        path = tmp_path / str(number)
        path.mkdir()
        model = load_model(checkpoints.write(path, weights, config))
        assert (model.info.modalities, model.info.vision_disabled, model.info.image_token_id) == ((), False, None)
        assert load_encoders(path) == ()
        with pytest.raises(Unimplemented, match="does not take image"):
            model.encode([picture()])


def test_without_vision_there_is_nothing_to_disable(tmp_path: Path) -> None:
    """The flag on a text-only checkpoint is an error at start, which says what to do."""
    weights = {name: tensor for name, tensor in checkpoints.tensors().items() if ".visual." not in name}
    config = checkpoints.config()
    del config["vision_config"]
    with pytest.raises(CheckpointError, match=r"no vision encoder to disable: drop --disable-vision-encoder"):
        load_model(checkpoints.write(tmp_path, weights, config), disable_vision_encoder=True)


def test_items_of_a_batch_have_equally_many_deepstack_layers(tmp_path: Path) -> None:
    """An item whose encoder has no DeepStack gets zeros beside those that have, so that a batch is one tensor."""
    model = load_model(checkpoints.write(tmp_path))
    completed = model._complete(EncoderOutput(torch.ones(3, checkpoints.HIDDEN), None))  # type: ignore[attr-defined]
    assert completed.deepstack is not None
    assert completed.deepstack.shape == (1, 3, checkpoints.HIDDEN)
    assert not completed.deepstack.any()


def test_heads_divide_the_tower(tmp_path: Path) -> None:
    """A tower whose heads do not divide its width is refused before any weight is read, naming both."""
    config = checkpoints.config()
    config["vision_config"]["num_heads"] = 3
    with pytest.raises(CheckpointError, match="num_heads 3 does not divide hidden_size 16"):
        load_model(checkpoints.write(tmp_path, None, config))
