"""InternS1-Pro: its config in every spelling, its checkpoints in every layout, what it refuses and what it costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.items import PlaceholderRange
from tessera.time_series import MAX_LENGTH, MAX_USED_SAMPLES
from tests.parity.model_harness import Prompt, make_drivers, run
from tests.positions import positions_of
from tests.tiny_interns1_pro import SERIES_CONFIG, TEXT_CONFIG, make_tiny_interns1_pro
from worker.models.base import CausalLM, EncoderInput, ItemLayout, ItemSize
from worker.models.checkpoint import CheckpointError
from worker.models.interns1_pro_config import parse_intern_text, parse_series
from worker.models.interns1_pro_time_series import normalised
from worker.models.loader import load_encoders, load_model

SMALL = {"num_hidden_layers": 1, "num_experts": 4, "num_experts_per_tok": 2}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one decoder layer and both encoders."""
    return make_tiny_interns1_pro(tmp_path_factory.mktemp("tiny"), text=SMALL, series={"encoder_layers": 1})


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> CausalLM:
    """Its model."""
    return load_model(checkpoint)


def derive(
    checkpoint: Path,
    path: Path,
    tensors: Callable[[Tensors], Tensors] = lambda stored: stored,
    config: Callable[[dict[str, Any]], dict[str, Any]] = lambda written: written,
) -> Path:
    """Write a checkpoint again with other tensors or another config."""
    for file in checkpoint.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            (path / file.name).symlink_to(file)
    save_file(tensors(load_file(checkpoint / "model.safetensors")), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config(json.loads((checkpoint / "config.json").read_text()))))
    return path


def logits(model: CausalLM) -> torch.Tensor:
    """Logits of a short prompt."""
    [driver] = make_drivers(model, [Prompt().text([30, 41, 52, 63, 30])])
    return run([driver], [5], all_logits=True)


def series(length: int = 60, channels: int = 2, rate: float = 10.0) -> EncoderInput:
    """A noisy series."""
    samples = torch.randn(length, channels, generator=torch.Generator().manual_seed(0))
    return EncoderInput("time_series", "samples", samples, sampling_rate_hz=rate)


def test_info(model: CausalLM, checkpoint: Path) -> None:
    """What `Describe` tells stands in the checkpoint's files."""
    info, added = model.info, json.loads((checkpoint / "added_tokens.json").read_text())
    assert info.architecture == "InternS1ProForConditionalGeneration"
    assert info.modalities == ("image", "video", "time_series")
    assert (info.image_token_id, info.video_token_id) == (added["<|image_pad|>"], added["<|video_pad|>"])
    assert info.time_series_token_id == added["<TS_CONTEXT>"]
    assert info.eos_token_ids == (added["<|im_end|>"], added["<|endoftext|>"])
    assert (info.bos_token_id, info.pad_token_id) == (added["<|endoftext|>"],) * 2
    assert (info.num_deepstack_layers, info.spatial_merge_size) == (0, 2)
    assert model.head_dims == (32, 16)


def test_token_ids_come_from_config_then_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    """Without generation_config.json the text config names the ids, without that tokenizer_config.json's tokens do."""
    derive(checkpoint, tmp_path)
    (tmp_path / "generation_config.json").unlink()
    written = load_model(tmp_path).info
    assert (written.eos_token_ids, written.bos_token_id) == ((2,), 0)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["text_config"]["eos_token_id"], config["text_config"]["bos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"ts_token_id": 77}))
    named = load_model(tmp_path).info
    assert (named.eos_token_ids, named.bos_token_id, named.pad_token_id) == ((2,), 1, 0)
    assert named.time_series_token_id == 77


def _without_model(stored: Tensors) -> Tensors:
    return {name.removeprefix("model."): tensor for name, tensor in stored.items()}


def _language_model_inside(stored: Tensors) -> Tensors:
    return {
        name.replace("model.language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head."): t
        for name, t in stored.items()
    }


def _fused(transposed: bool) -> Callable[[Tensors], Tensors]:
    def fuse(stored: Tensors) -> Tensors:
        experts = "model.language_model.layers.0.mlp.experts"
        kept = {name: tensor for name, tensor in stored.items() if experts not in name}

        def stack(*names: str) -> torch.Tensor:
            matrices = [torch.cat([stored[f"{experts}.{i}.{name}.weight"] for name in names]) for i in range(4)]
            return torch.stack([matrix.t() if transposed else matrix for matrix in matrices]).contiguous()

        fused = {"gate_up_proj": stack("gate_proj", "up_proj"), "down_proj": stack("down_proj")}
        return kept | {f"{experts}.{name}": tensor for name, tensor in fused.items()}

    return fuse


LAYOUTS = {
    "without model": _without_model,
    "language_model.model": _language_model_inside,
    "fused experts": _fused(False),
    "fused and transposed experts": _fused(True),
}


@pytest.mark.parametrize("respell", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_key_layouts(checkpoint: Path, model: CausalLM, tmp_path: Path, respell: Callable[[Tensors], Tensors]) -> None:
    """With and without `model.`, the language model inside, experts one by one or fused: the same model."""
    other = load_model(derive(checkpoint, tmp_path, respell))
    assert torch.allclose(logits(other), logits(model), atol=1e-4)
    assert torch.equal(other.encode([series()])[0].embeddings, model.encode([series()])[0].embeddings)


def test_a_flat_text_only_checkpoint_serves(checkpoint: Path, model: CausalLM, tmp_path: Path) -> None:
    """Without encoders, names and config of the language model alone, a checkpoint has no modality."""

    def text_alone(stored: Tensors) -> Tensors:
        inside = {name: tensor for name, tensor in stored.items() if "language_model" in name or "lm_head" in name}
        return {name.replace("model.language_model.", "model."): tensor for name, tensor in inside.items()}

    def flat_config(written: dict[str, Any]) -> dict[str, Any]:
        return written["text_config"] | {"architectures": written["architectures"]}

    path = derive(checkpoint, tmp_path, text_alone, flat_config)
    flat = load_model(path)
    assert (flat.info.modalities, flat.info.time_series_token_id, load_encoders(path)) == ((), None, ())
    assert torch.equal(logits(flat), logits(model))
    with pytest.raises(Unimplemented, match="does not take time_series"):
        flat.encode([series()])


def test_without_ts_config_there_are_no_time_series(checkpoint: Path, tmp_path: Path) -> None:
    """The first release had no ts_config; weights of an encoder without sizes are left unread."""

    def drop(written: dict[str, Any]) -> dict[str, Any]:
        del written["ts_config"]
        return written

    model = load_model(derive(checkpoint, tmp_path, config=drop))
    assert (model.info.modalities, model.info.time_series_token_id) == (("image", "video"), None)
    with pytest.raises(Unimplemented, match="does not take time_series"):
        model.encode([series()])


def test_without_vision_time_series_go_on(checkpoint: Path) -> None:
    """The vision tower alone is left unread."""
    blind = load_model(checkpoint, disable_vision_encoder=True)
    assert (blind.info.modalities, blind.info.vision_disabled) == (("time_series",), True)
    assert len(blind.encode([series()])[0].embeddings) == blind.item_tokens(series().size)
    with pytest.raises(FailedPrecondition) as caught:
        blind.encode([EncoderInput("image", "pixels_u8", torch.zeros(1, 32, 32, 3, dtype=torch.uint8), (1, 2, 2))])
    assert caught.value.reason == "VISION_DISABLED"


def test_both_spellings_of_the_text_config() -> None:
    """rope_theta may stand inside or beside the rope's parameters, whatever their name; any key of FoPE's means it."""
    rope = dict(TEXT_CONFIG["rope_scaling"])
    older = parse_intern_text(TEXT_CONFIG, False)
    newer = {key: value for key, value in TEXT_CONFIG.items() if not key.startswith("rope")}
    assert older == parse_intern_text(newer | {"rope_parameters": rope | {"rope_theta": 50_000.0}}, False)
    assert older == parse_intern_text(TEXT_CONFIG | {"rope_scaling": rope | {"rope_type": "fope"}}, False)
    assert (older.positions.num_frequencies, older.positions.per_head, older.positions.mixed) == (10, True, True)
    plain = parse_intern_text(TEXT_CONFIG | {"rope_scaling": None}, False).positions
    assert (plain.num_frequencies, plain.mixed, plain.theta) == (16, False, 50_000.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"router_n_groups": 3}, "router_n_groups"),
        ({"num_experts_per_tok": 3}, "router_n_groups"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_what_is_not_served_is_named(change: dict[str, Any], field: str) -> None:
    """A text config that this code cannot follow is an error that names the field."""
    with pytest.raises(CheckpointError, match=field):
        parse_intern_text(TEXT_CONFIG | change, False)


def test_series_config() -> None:
    """Sizes default to those that the family was trained with; what does not fit together is named."""
    trained = parse_series({}, 4096)
    assert (trained.width, trained.num_layers, trained.num_heads, trained.inner_width) == (768, 17, 8, 3072)
    assert (trained.patch_width, trained.feature_size, trained.bins) == (128, 256, 80)
    assert (trained.max_positions, trained.adapted_size, trained.out_hidden_size) == (1500, 1024, 4096)
    for change, field in (
        ({"activation_function": "relu"}, "activation_function"),
        ({"ts_hidden_dim": 5}, "ts_hidden_dim"),
        ({"encoder_attention_heads": 3}, "d_model"),
        ({"ts_adapt_in_dim": 30}, "ts_adapt_in_dim"),
    ):
        with pytest.raises(CheckpointError, match=field):
            parse_series(SERIES_CONFIG | change, 64)


def test_an_encoder_of_another_width_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Embeddings have the language model's width."""

    def narrow(stored: Tensors) -> Tensors:
        cut = {"linear_1.weight": (32, 24), "linear_1.bias": (32,), "linear_2.weight": (32, 32), "linear_2.bias": (32,)}
        return stored | {f"model.time_series.projector.{name}": torch.zeros(shape) for name, shape in cut.items()}

    def tell(written: dict[str, Any]) -> dict[str, Any]:
        return written | {"ts_config": written["ts_config"] | {"out_hidden_size": 32}}

    with pytest.raises(CheckpointError, match="time_series gives embeddings of width 32"):
        load_model(derive(checkpoint, tmp_path, narrow, tell))


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (EncoderInput("time_series", "pixels_u8", torch.zeros(1, 2, 2, 3)), "PAYLOAD_KIND"),
        (EncoderInput("time_series", "samples", torch.zeros(9)), "TENSOR_SHAPE"),
        (EncoderInput("time_series", "samples", torch.zeros(9, 0)), "SERIES_CHANNELS"),
        (series(4, 1, 1.0), "SERIES_TOO_SHORT"),
        (series(320, 1, 16_000.0), "SERIES_TOO_SHORT"),
        (EncoderInput("time_series", "embeddings", torch.zeros(3, 63)), "GRID_MISMATCH"),
    ],
)
def test_a_bad_series_is_refused_with_its_reason(model: CausalLM, item: EncoderInput, reason: str) -> None:
    """A series has samples of at least two patches, or embeddings of the model's width."""
    with pytest.raises(ServeError) as caught:
        model.encode([item])
    assert caught.value.reason == reason


def test_embeddings_pass_through_beside_samples(model: CausalLM) -> None:
    """Ready embeddings of any number come back as they are, in their place among encoded series."""
    ready = torch.randn(7, 64)
    first, second, third = model.encode([series(), EncoderInput("time_series", "embeddings", ready), series()])
    assert torch.equal(second.embeddings, ready)
    assert torch.allclose(first.embeddings, third.embeddings, atol=1e-5)


def test_channels_are_normalised_over_the_whole_series() -> None:
    """Mean and deviation count samples that are cut off afterwards; a constant channel becomes zeros."""
    samples = torch.randn(MAX_LENGTH + 50_000, 2, generator=torch.Generator().manual_seed(0))
    samples[MAX_LENGTH:, 0] += 100
    samples[:, 1] = 7
    used = normalised(samples, torch.float32)
    assert used.shape == (MAX_LENGTH, 2)
    wide = samples[:, 0].double()
    expected = ((wide - wide.mean()) / (wide.square().mean() - wide.mean().square()).sqrt())[:MAX_LENGTH]
    assert torch.allclose(used[:, 0], expected.float(), atol=1e-5)
    assert not used[:, 1].any()


def test_positions_need_ranges_that_fit(model: CausalLM) -> None:
    """Positions only count tokens, and yet a range that does not fit its grid is refused."""
    layout = ItemLayout("image", [PlaceholderRange(1, 2)], (1, 2, 4))
    segments, following = model.prompt_positions(5, [layout, ItemLayout("time_series", [PlaceholderRange(3, 2)], None)])
    assert (positions_of(segments, 5).tolist(), following) == ([[0, 1, 2, 3, 4]] * 3, 5)
    with pytest.raises(InvalidArgument):
        model.prompt_positions(5, [layout._replace(grid_thw=(1, 2, 6))])


def test_the_worst_series_fills_the_context(model: CausalLM) -> None:
    """The longest legal series has as many tokens as asked for, or as 240000 samples give, and can be encoded."""
    sizes = {size.modality: size for size in model.worst_items(50)}
    assert model.item_tokens(sizes["time_series"]) == 50
    [output] = model.encode([model.dummy_input(replace(sizes["time_series"], channels=1))])
    assert output.size_bytes == 50 * model.encoder_token_bytes
    longest = {size.modality: size for size in model.worst_items(10**9)}["time_series"]
    assert (longest.length, model.item_tokens(longest)) == (MAX_LENGTH, 30_000)
    assert MAX_USED_SAMPLES - MAX_LENGTH < longest.length * longest.channels <= MAX_USED_SAMPLES


def test_estimates_grow_with_the_work(model: CausalLM) -> None:
    """More samples or channels never cost less."""
    sizes = [ItemSize("time_series", None, length, channels, 1.0) for length, channels in ((90, 1), (900, 1), (900, 3))]
    assert sorted(map(model.encoder_workspace_bytes, sizes)) == [model.encoder_workspace_bytes(size) for size in sizes]
    assert model.weight_bytes > 0
