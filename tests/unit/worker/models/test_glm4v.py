"""The GLM-V families' own rules: config in both spellings, names in every layout, what is left unread.

Next: tests/parity/test_model_glm4v.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tessera_kernels import reference
from tests.unit.worker.models import checkpoints, glm_checkpoints
from tests.unit.worker.models.test_loader import logits
from worker.models.base import EncoderInput
from worker.models.checkpoint import CheckpointError
from worker.models.glm4v_config import parse_dense_config, parse_moe_config, parse_vision_config
from worker.models.loader import load_encoders, load_model
from worker.models.registry import REGISTRY


def write(path: Path, weights: dict[str, torch.Tensor] | None = None, moe: bool = False, **settings: Any) -> Path:
    """Write a GLM checkpoint, its config.json changed by `settings`; a field that is None is left out."""
    path.mkdir(exist_ok=True)
    config = glm_checkpoints.config(moe) | settings
    config = {key: value for key, value in config.items() if value is not None}
    return checkpoints.write(path, glm_checkpoints.tensors(moe) if weights is None else weights, config)


@pytest.fixture(params=[False, True], ids=["dense", "moe"])
def moe(request: pytest.FixtureRequest) -> bool:
    """Whether the language model is a mixture of experts."""
    return request.param


@pytest.fixture
def expected(tmp_path: Path, moe: bool) -> torch.Tensor:
    """What the plain checkpoint gives."""
    return logits(load_model(write(tmp_path / "plain", moe=moe)))


def test_info(tmp_path: Path, moe: bool) -> None:
    """What `Describe` tells stands in the checkpoint's files; a clip's placeholder is the image token."""
    model = load_model(write(tmp_path, moe=moe))
    info = model.info
    assert (info.image_token_id, info.video_token_id) == (8, 8)
    assert (info.vision_start_token_id, info.vision_end_token_id) == (5, 6)
    assert (info.patch_size, info.spatial_merge_size, info.temporal_patch_size) == (4, 2, 2)
    assert (info.num_deepstack_layers, info.eos_token_ids) == (0, (3, 4))
    assert info.modalities == ("image", "video")
    assert model.head_dims == (16, 16)
    assert model.encoder_token_bytes == 32 * 4


@pytest.mark.parametrize(
    "renamed",
    [
        {"model.language_model.": "language_model.model.", "model.visual.": "visual."},
        {"model.language_model.": "model.", "model.visual.": "visual."},
        {"model.language_model.": "language_model.", "model.visual.": "visual."},
        {"lm_head.": "language_model.lm_head.", "model.language_model.": "language_model.model."},
    ],
)
def test_older_names_give_the_same_model(
    tmp_path: Path, moe: bool, expected: torch.Tensor, renamed: dict[str, str]
) -> None:
    """Prefixes that earlier releases wrote are read like today's."""
    weights = {}
    for name, tensor in glm_checkpoints.tensors(moe).items():
        old = next((old for old in renamed if name.startswith(old)), "")
        weights[renamed.get(old, "") + name[len(old) :]] = tensor
    assert torch.equal(logits(load_model(write(tmp_path, weights, moe))), expected)


def test_experts_in_one_tensor_give_the_same_model(tmp_path: Path) -> None:
    """Experts that were fused on saving are read like one tensor each."""
    expected = logits(load_model(write(tmp_path / "plain", moe=True)))
    weights = glm_checkpoints.tensors(moe=True)
    experts = "model.language_model.layers.1.mlp.experts"

    def stack(name: str) -> torch.Tensor:
        return torch.stack([weights.pop(f"{experts}.{index}.{name}.weight") for index in range(4)])

    weights[f"{experts}.gate_up_proj"] = torch.cat((stack("gate_proj"), stack("up_proj")), dim=1)
    weights[f"{experts}.down_proj"] = stack("down_proj")
    assert torch.equal(logits(load_model(write(tmp_path, weights, moe=True))), expected)


def test_the_older_spelling_of_the_rotation(tmp_path: Path, moe: bool, expected: torch.Tensor) -> None:
    """rope_theta, rope_scaling and partial_rotary_factor side by side say the same as rope_parameters."""
    text = glm_checkpoints.config(moe)["text_config"]
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": 0.5}
    text["rope_scaling"] = {"type": "default", "mrope_section": rope["mrope_section"]}
    assert torch.equal(logits(load_model(write(tmp_path, moe=moe, text_config=text))), expected)


def test_a_flat_text_only_checkpoint(tmp_path: Path, moe: bool) -> None:
    """Without vision part, its sizes at the top of config.json, a checkpoint loads and has no modalities."""
    weights = {name: tensor for name, tensor in glm_checkpoints.tensors(moe).items() if ".visual." not in name}
    text = glm_checkpoints.config(moe)["text_config"]
    model = load_model(write(tmp_path, weights, moe, text_config=None, vision_config=None, **text))
    assert model.info.modalities == ()
    assert model.info.image_token_id is None
    assert model.worst_items(100) == []


def test_a_flat_config_beside_a_vision_part(tmp_path: Path, moe: bool, expected: torch.Tensor) -> None:
    """The language model's sizes at the top of config.json mean the same as in a text_config."""
    text = glm_checkpoints.config(moe)["text_config"]
    assert torch.equal(logits(load_model(write(tmp_path, moe=moe, text_config=None, **text))), expected)


def test_without_the_vision_encoder(tmp_path: Path) -> None:
    """Its weights are not read, and its modalities are not served."""
    weights = {name: tensor for name, tensor in glm_checkpoints.tensors().items() if ".visual." not in name}
    model = load_model(write(tmp_path, weights), disable_vision_encoder=True)
    assert model.info.modalities == ()
    assert model.info.vision_disabled


def test_the_tower_loads_alone(tmp_path: Path) -> None:
    """A tower needs no weight of the language model, and gives what it gives inside the model."""
    model = load_model(write(tmp_path / "whole"))
    visual = {name: tensor for name, tensor in glm_checkpoints.tensors().items() if ".visual." in name}
    [encoder] = load_encoders(write(tmp_path / "alone", visual))
    pixels = torch.arange(3 * 8 * 16 * 3).view(3, 8, 16, 3).to(torch.uint8)
    item = EncoderInput("video", "pixels_u8", pixels, (2, 2, 4))
    [alone], [inside] = encoder([item]), model.encode([item])
    assert alone.embeddings.shape == (4, 32)
    assert torch.equal(alone.embeddings, inside.embeddings)


def test_layers_that_predict_ahead_stay_unread(tmp_path: Path) -> None:
    """A layer behind the last, which speculation would use, is neither needed nor an error."""
    weights = glm_checkpoints.tensors(moe=True) | {"model.language_model.layers.2.eh_proj.weight": torch.zeros(3)}
    assert load_model(write(tmp_path, weights, moe=True)).num_layers == 2


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    """Tied in the outer config or in the text config, the stored head is not read."""
    weights = glm_checkpoints.tensors()
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"].clone()
    expected = logits(load_model(write(tmp_path / "untied", weights)))
    del weights["lm_head.weight"]
    outer = load_model(write(tmp_path / "outer", weights, tie_word_embeddings=True))
    text = glm_checkpoints.config()["text_config"] | {"tie_word_embeddings": True}
    inner = load_model(write(tmp_path / "inner", weights, text_config=text, tie_word_embeddings=False))
    assert torch.allclose(logits(outer), expected, atol=1e-6)
    assert torch.allclose(logits(inner), expected, atol=1e-6)


def test_an_image_counts_as_two_frames(tmp_path: Path) -> None:
    """The budget of a still is that of a temporal patch, so its tokens are half of what the number seems to say."""
    model = load_model(write(tmp_path))
    image, video = model.worst_items(10**9)
    assert model.item_tokens(image) == pytest.approx(11_760_000 // 128, rel=0.01)
    assert model.item_tokens(video) == pytest.approx(47_040_000 // 128, rel=0.01)


def test_pixels_are_centred_by_clips_statistics(tmp_path: Path) -> None:
    """Where no processor file says otherwise, pixels embed as patches normed by CLIP's mean and deviation."""
    [encoder] = load_encoders(write(tmp_path))
    pixels = torch.randint(0, 256, (2, 8, 16, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    rows = reference.patchify((pixels / 255 - mean) / std, 4, 2, 2)
    first, second = encoder(
        [EncoderInput("video", *kind, (1, 2, 4)) for kind in (("pixels_u8", pixels), ("patches", rows))]
    )
    assert torch.allclose(first.embeddings, second.embeddings, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": None}, r"text_config\.hidden_size is missing"),
        ({"hidden_act": "gelu"}, r"text_config\.hidden_act 'gelu' is not served"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' is not served"),
        ({"rope_parameters": {"mrope_section": [4, 4, 4], "partial_rotary_factor": 0.5}}, "does not add up to 4"),
        ({"n_group": 3}, "do not divide into n_group 3"),
        ({"num_experts_per_tok": 3, "n_group": 2, "topk_group": 1}, "may choose from 2 experts"),
        ({"n_routed_experts": None}, r"text_config\.n_routed_experts is missing"),
    ],
)
def test_a_bad_text_field_is_named(fields: dict[str, Any], message: str) -> None:
    """A size that is missing, or a value that is not served, is refused by its name."""
    text = glm_checkpoints.config(moe=True)["text_config"] | fields
    with pytest.raises(CheckpointError, match=message):
        parse_moe_config(text, False)


def test_what_configs_leave_out() -> None:
    """Absent fields are as in transformers' classes: GLM-4.1V turns whole heads, GLM-4.5V half of each."""
    text = glm_checkpoints.config()["text_config"] | {"rope_parameters": {"mrope_section": [2, 3, 3]}}
    assert parse_dense_config(text, False).rotary_dim == 16
    text = glm_checkpoints.config(moe=True)["text_config"] | {"rope_parameters": {"mrope_section": [1, 1, 2]}}
    parsed = parse_moe_config(text, False)
    assert (parsed.rotary_dim, parsed.rope_theta, parsed.attention.bias) == (8, 1e4, True)
    assert parsed.moe is not None
    assert (parsed.moe.num_groups, parsed.moe.normalise, parsed.moe.scale) == (1, True, 1.0)
    vision = parse_vision_config({})
    assert (vision.depth, vision.head_dim, vision.table_side, vision.merge_size) == (24, 128, 24, 2)
    assert parse_vision_config({"patch_size": [14, 14]}).patch_size == 14
    with pytest.raises(CheckpointError, match="sides of different length"):
        parse_vision_config({"image_size": [336, 224]})


def test_the_families_are_registered() -> None:
    """Each architecture of transformers has its class."""
    names = ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration")
    assert [REGISTRY.resolve([name])[1].__name__ for name in names] == ["Glm4v", "Glm4vMoe", "Glm46V"]
