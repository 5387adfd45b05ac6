"""Loading: both name layouts, shards, ties, types, and an error that names what is wrong.

Next: tests/unit/worker/models/test_registry.py
"""

import json
from pathlib import Path

import pytest
import torch

from tests.unit.worker.models import checkpoints
from worker.layers.kv_cache import KVCache
from worker.models.base import CausalLM, EncoderInput, ForwardBatch
from worker.models.checkpoint import CheckpointError
from worker.models.loader import load_model


def logits(model: CausalLM) -> torch.Tensor:
    """Logits of a fixed prompt with one encoded item at its first placeholder row."""
    pixels = torch.arange(8 * 8 * 3, dtype=torch.uint8).view(1, 8, 8, 3)
    [item] = model.encode([EncoderInput("image", "pixels_u8", pixels, (1, 2, 2))])
    cache: KVCache = model.make_kv_cache(2, 8)
    batch = ForwardBatch(
        input_ids=torch.tensor([11, 8, 12, 13]),
        positions=torch.arange(4).expand(3, 4),
        slot_mapping=torch.arange(8, 12),
        block_tables=torch.tensor([[1, 0]], dtype=torch.int32),
        context_lens=torch.tensor([4], dtype=torch.int32),
        query_start=torch.tensor([0, 4], dtype=torch.int32),
        logits_indices=torch.tensor([3]),
        query_lens=(4,),
        kv_lens=(4,),
        mm_embeds=item.embeddings,
        mm_source=torch.tensor([[0, 1]]),
        mm_target=torch.tensor([[1, 2]]),
        mm_deepstack=item.deepstack,
    )
    return model.forward(batch, cache)


@pytest.fixture
def expected(tmp_path: Path) -> torch.Tensor:
    """What the plain checkpoint gives."""
    folder = tmp_path / "plain"
    folder.mkdir()
    return logits(load_model(checkpoints.write(folder)))


def test_shards_give_the_same_model(tmp_path: Path, expected: torch.Tensor) -> None:
    """A checkpoint cut into shards with an index loads as the single file does."""
    assert torch.equal(logits(load_model(checkpoints.write(tmp_path, shards=3))), expected)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.language_model.", "language_model.model."),
        ("model.language_model.", "model."),
        ("model.visual.", "visual."),
    ],
)
def test_older_names_give_the_same_model(tmp_path: Path, expected: torch.Tensor, old: str, new: str) -> None:
    """Prefixes that earlier releases wrote are read like today's."""
    weights = {
        new + name[len(old) :] if name.startswith(old) else name: tensor
        for name, tensor in checkpoints.tensors().items()
    }
    assert torch.equal(logits(load_model(checkpoints.write(tmp_path, weights))), expected)


def test_a_tied_head_in_the_file_is_not_read(tmp_path: Path, expected: torch.Tensor) -> None:
    """Where head and embedding are tied, a stored head is redundant, not an error."""
    weights = checkpoints.tensors() | {"lm_head.weight": torch.zeros(1)}
    assert torch.equal(logits(load_model(checkpoints.write(tmp_path, weights))), expected)


def test_an_untied_head_is_its_own(tmp_path: Path, expected: torch.Tensor) -> None:
    """An untied head gives the logits, and the embedding stays the embedding."""
    weights = checkpoints.tensors()
    weights["lm_head.weight"] = 2 * weights["model.language_model.embed_tokens.weight"]
    path = checkpoints.write(tmp_path, weights, checkpoints.config(tie=False))
    assert torch.allclose(logits(load_model(path)), 2 * expected, atol=1e-5)


def test_bf16_runs_from_the_same_code(tmp_path: Path, expected: torch.Tensor) -> None:
    """In bf16 the logits are those of fp32 up to its few digits; what draws from them widens them."""
    out = logits(load_model(checkpoints.write(tmp_path), dtype="bfloat16"))
    assert out.dtype is torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_bf16_checkpoint_serves_in_fp32_on_the_cpu(tmp_path: Path) -> None:
    """Unless told otherwise the CPU computes in fp32, whatever the file holds."""
    weights = {name: tensor.bfloat16() for name, tensor in checkpoints.tensors().items()}
    model = load_model(checkpoints.write(tmp_path, weights))
    assert model.dtype is torch.float32
    assert model.info.dtype == "float32"
    assert torch.isfinite(logits(model)).all()


def test_progress_ends_at_one(tmp_path: Path) -> None:
    """Progress rises to 1, never back."""
    seen: list[float] = []
    load_model(checkpoints.write(tmp_path), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_weight_bytes_are_those_of_the_matrices(tmp_path: Path) -> None:
    """The sum that sizes the caches counts every matrix once, the tied one too."""
    model = load_model(checkpoints.write(tmp_path))
    matrices = sum(tensor.nbytes for tensor in checkpoints.tensors().values() if tensor.dim() > 1)
    assert matrices <= model.weight_bytes <= 1.2 * matrices


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """The error for a tensor that is not there says which."""
    weights = checkpoints.tensors()
    del weights["model.language_model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks model\.language_model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(checkpoints.write(tmp_path, weights))


def test_an_unread_tensor_is_named(tmp_path: Path) -> None:
    """A tensor that the model has no use for is an error, not ignored."""
    weights = checkpoints.tensors() | {"model.language_model.layers.7.odd.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"does not use .*layers\.7\.odd\.weight"):
        load_model(checkpoints.write(tmp_path, weights))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    """A tensor of another shape is refused with both shapes."""
    weights = checkpoints.tensors() | {"model.language_model.norm.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"model\.language_model\.norm\.weight .* is \[3\], not \[16\]"):
        load_model(checkpoints.write(tmp_path, weights))


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """Integers in place of a matrix are refused by name."""
    name = "model.language_model.layers.0.mlp.down_proj.weight"
    weights = checkpoints.tensors() | {name: torch.zeros(checkpoints.shapes()[name], dtype=torch.int8)}
    with pytest.raises(CheckpointError, match="quantised"):
        load_model(checkpoints.write(tmp_path, weights))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    """The index names a file that is not there."""
    checkpoints.write(tmp_path, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_model(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    """Bytes that are no safetensors, or a config that is no JSON, give an error that names the file."""
    checkpoints.write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is not valid JSON"):
        load_model(tmp_path)


def test_an_unknown_architecture_fails_before_any_weight(tmp_path: Path) -> None:
    """The error names the architectures that are served; the weights need not even exist."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"]}))
    with pytest.raises(CheckpointError, match=r"OddForCausalLM is not served.*Qwen3VLForConditionalGeneration"):
        load_model(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    """A config without a size says which."""
    settings = checkpoints.config()
    del settings["text_config"]["intermediate_size"]
    with pytest.raises(CheckpointError, match=r"text_config\.intermediate_size is missing"):
        load_model(checkpoints.write(tmp_path, settings=settings))


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    """Only fp32 and bf16 are served."""
    with pytest.raises(CheckpointError, match="float16"):
        load_model(checkpoints.write(tmp_path), dtype="float16")


def test_without_the_vision_encoder(tmp_path: Path) -> None:
    """Its weights are not read, its modalities not served, and an item is refused."""
    from tessera.errors import FailedPrecondition

    weights = {name: tensor for name, tensor in checkpoints.tensors().items() if ".visual." not in name}
    model = load_model(checkpoints.write(tmp_path, weights), disable_vision_encoder=True)
    assert model.info.modalities == ()
    assert model.worst_items(100) == []
    with pytest.raises(FailedPrecondition, match="without its vision encoder") as caught:
        model.encode([EncoderInput("image", "pixels_u8", torch.zeros(1), (1, 2, 2))])
    assert caught.value.reason == "VISION_DISABLED"
