"""Qwen3.5: both spellings of its config, every layout of its names and experts, and what the engine plans with.

Next: tests/parity/test_model_qwen3_5.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.worker.models import checkpoints
from tests.unit.worker.models import qwen3_5_checkpoints as tiny
from worker.layers.norm import RMSNorm
from worker.layers.state_cache import StateShape
from worker.models.base import CausalLM, ForwardBatch
from worker.models.checkpoint import CheckpointError
from worker.models.loader import load_model
from worker.models.qwen3_5_config import FULL, LINEAR, parse_hybrid_text_config
from worker.models.qwen3_5_moe import Qwen3_5Moe, parse_hybrid_moe_text_config

Names = Callable[[str], str]


def logits(model: CausalLM) -> torch.Tensor:
    """Logits of a fixed prompt, prefilled in a slot that holds nothing of use."""
    cache = model.make_kv_cache(2, 8, 2)
    assert cache.states is not None
    cache.states.conv.fill_(float("nan"))
    cache.states.recurrent.fill_(float("nan"))
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
        state_slots=torch.tensor([1]),
    )
    out = model.forward(batch, cache)
    assert not out.isnan().any()
    assert cache.states.recurrent[:, 0].isnan().all()
    return out


def load(
    path: Path, weights: dict[str, torch.Tensor], settings: dict[str, Any], *, disable_vision_encoder: bool = False
) -> CausalLM:
    """Write a checkpoint and load it."""
    path.mkdir(exist_ok=True)
    return load_model(checkpoints.write(path, weights, settings), disable_vision_encoder=disable_vision_encoder)


@pytest.fixture(params=[False, True], ids=["dense", "moe"])
def moe(request: pytest.FixtureRequest) -> bool:
    """Whether the checkpoint is a mixture of experts."""
    return request.param


@pytest.fixture
def expected(tmp_path: Path, moe: bool) -> torch.Tensor:
    """What the plain checkpoint gives."""
    return logits(load(tmp_path / "plain", tiny.tensors(moe), tiny.config(moe)))


def swap(old: str, new: str) -> Names:
    return lambda name: new + name[len(old) :] if name.startswith(old) else name


@pytest.mark.parametrize(
    "respell",
    [
        swap("model.language_model.", "language_model.model."),
        swap("model.language_model.", "model."),
        swap("model.visual.", "visual."),
        swap("lm_head.", "language_model.lm_head."),
    ],
)
def test_names_of_other_releases_give_the_same_model(
    tmp_path: Path, expected: torch.Tensor, moe: bool, respell: Names
) -> None:
    """With and without `model.` and `language_model`, the same tensors are found; the predictor's stay unread."""
    weights = {respell(name): tensor for name, tensor in tiny.tensors(moe).items()}
    assert torch.equal(logits(load(tmp_path / "other", weights, tiny.config(moe))), expected)


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", ""])
def test_a_text_only_checkpoint_gives_the_same_model(
    tmp_path: Path, expected: torch.Tensor, moe: bool, prefix: str
) -> None:
    """The architecture for text has a flat config, no modalities and no markers."""
    respell = swap("model.language_model.", prefix)
    weights = {respell(name): tensor for name, tensor in tiny.text_tensors(moe).items()}
    model = load(tmp_path / "text", weights, tiny.config(moe, text_only=True))
    assert torch.equal(logits(model), expected)
    assert (model.info.modalities, model.info.image_token_id, model.info.eos_token_ids) == ((), None, (3,))
    assert model.head_dims == (tiny.HEAD_DIM,)


def test_a_text_only_config_beside_all_weights(tmp_path: Path, expected: torch.Tensor, moe: bool) -> None:
    """A tower that the config does not speak of stays unread."""
    model = load(tmp_path / "text", tiny.tensors(moe), tiny.config(moe, text_only=True))
    assert torch.equal(logits(model), expected)


def test_one_tensor_for_each_expert_gives_the_same_model(tmp_path: Path) -> None:
    """Experts as FP8 releases name them, one by one, are those of the fused stacks."""
    weights = tiny.tensors(moe=True)
    expected = logits(load(tmp_path / "fused", weights, tiny.config(moe=True)))
    for layer in range(3):
        prefix = f"model.language_model.layers.{layer}.mlp.experts."
        gate_up, down = weights.pop(prefix + "gate_up_proj"), weights.pop(prefix + "down_proj")
        for index in range(tiny.EXPERTS):
            gate, up = gate_up[index].chunk(2)
            for name, tensor in (("gate", gate), ("up", up), ("down", down[index])):
                weights[f"{prefix}{index}.{name}_proj.weight"] = tensor.contiguous()
    assert torch.equal(logits(load(tmp_path / "single", weights, tiny.config(moe=True))), expected)


def test_vision_can_be_left_unread(tmp_path: Path, expected: torch.Tensor, moe: bool) -> None:
    """Without its tower the model serves text, and says so."""
    weights = tiny.text_tensors(moe) | {"model.visual.blocks.0.norm1.weight": torch.zeros(1)}
    model = load(tmp_path / "blind", weights, tiny.config(moe), disable_vision_encoder=True)
    assert torch.equal(logits(model), expected)
    assert model.info.modalities == () and model.info.vision_disabled


def test_what_the_engine_plans_with(tmp_path: Path, moe: bool) -> None:
    """Only full attention has keys and values; the others have a state; marker ids default to the family's own."""
    model = load(tmp_path, tiny.tensors(moe), tiny.config(moe))
    assert (model.num_layers, model.num_kv_heads, model.head_dim) == (1, 1, 16)
    assert model.state_shape == StateShape(2, tiny.CHANNELS, 2, 2, 8, 4, torch.float32)
    assert model.make_kv_cache(3, 8, 5).states.recurrent.shape == (2, 5, 2, 8, 4)  # type: ignore[union-attr]
    info = model.info
    assert (info.vision_start_token_id, info.vision_end_token_id) == (248053, 248054)
    assert (info.image_token_id, info.video_token_id) == (248056, 248057)
    assert (info.modalities, info.num_deepstack_layers) == (("image", "video"), 0)
    assert model.forward_workspace_bytes(10, 1) > 10 * 4 * 3 * tiny.CHANNELS
    assert model.weight_bytes > sum(tensor.nbytes for name, tensor in tiny.text_tensors(moe).items() if "mlp" in name)


def test_a_centred_norm_keeps_small_weights_in_bf16(tmp_path: Path) -> None:
    """1 + w is added up in fp32, where bf16 would round the weight away."""

    class Source:
        dtype, device = torch.bfloat16, torch.device("cpu")

        def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
            return torch.full(shape, 2.0**-10).to(dtype or self.dtype)

    norm = RMSNorm.load(Source(), 4, 0.0, offset=1.0)  # type: ignore[arg-type]
    assert torch.equal(norm.weight, torch.full((4,), 1 + 2.0**-10))
    assert norm(torch.ones(1, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_both_spellings_say_the_same() -> None:
    """What transformers 4.57 and 5.x write gives one config; the interval gives the layers where no list does."""
    newer = parse_hybrid_text_config(tiny.TEXT, tied=False)
    older = {key: value for key, value in tiny.TEXT.items() if key not in ("rope_parameters", "layer_types")}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    older |= {"rope_theta": 1e4, "partial_rotary_factor": 0.5, "rope_scaling": rope, "full_attention_interval": 2}
    assert parse_hybrid_text_config(older, tied=False) == newer
    assert newer.layer_types == (LINEAR, FULL, LINEAR)
    assert (newer.rotary_dim, newer.mrope_sections, newer.num_linear_layers) == (8, (2, 1, 1), 2)


def test_defaults_are_those_of_transformers() -> None:
    """A sparse config means what transformers' config class makes of it."""
    config = {
        "hidden_size": 64,
        "intermediate_size": 8,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": 9,
    }
    text = parse_hybrid_text_config(config, tied=False)
    assert text.layer_types == 2 * (LINEAR, LINEAR, LINEAR, FULL)
    assert (text.attention.head_dim, text.rotary_dim, text.mrope_sections) == (256, 64, (11, 11, 10))
    linear = text.linear
    assert (linear.key_heads, linear.value_heads, linear.key_dim, linear.value_dim, linear.kernel) == (
        16,
        32,
        128,
        128,
        4,
    )
    assert (text.rope_theta, text.max_position_embeddings) == (10_000.0, 32_768)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["linear_attention"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"linear_num_value_heads": 3, "linear_num_key_heads": 2}, "linear_num_value_heads 3"),
        ({"rope_parameters": {"partial_rotary_factor": 0.05}}, "partial_rotary_factor 0.05"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"num_experts": None}, "num_experts is missing"),
        ({"shared_expert_intermediate_size": 0}, "shared_expert_intermediate_size 0"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
    ],
)
def test_a_config_that_is_not_served_is_named(change: dict[str, Any], message: str) -> None:
    """The error says which field."""
    with pytest.raises(CheckpointError, match=message):
        parse_hybrid_moe_text_config(tiny.TEXT | tiny.MOE | change, tied=False)


@pytest.mark.parametrize(
    "wide",
    [
        {"linear_value_head_dim": 1000},
        {"num_attention_heads": 1000},
        {"moe_intermediate_size": 1000},
        {"shared_expert_intermediate_size": 1000},
    ],
)
def test_any_kind_of_layer_may_be_the_widest(wide: dict[str, Any]) -> None:
    """The memory that is planned for a token grows with whichever layer needs most."""
    plain, wider = (parse_hybrid_moe_text_config(tiny.TEXT | tiny.MOE | change, tied=False) for change in ({}, wide))
    assert Qwen3_5Moe.layer_width(wider) > 2 * Qwen3_5Moe.layer_width(plain)
