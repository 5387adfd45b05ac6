"""Sizes follow from model, flags and memory; what does not fit says which flag mends it."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from structlog.testing import capture_logs

from tests.unit.worker.engine.fakes import FakeModel
from tests.unit.worker.engine.stateful import StatefulModel
from worker.engine.memory_needs import MemoryNeeds
from worker.engine.sizing import EngineOptions, SizingError, size_engine
from worker.layers.state_cache import StateShape

BLOCK_BYTES = 1 * 2 * 4 * 1 * 2 * 8  # layers, key and value, tokens, heads, head_dim, float64
GIB = 1 << 30


def size(free_bytes=GIB, model=None, **options):
    return size_engine(model or FakeModel(), EngineOptions(**({"block_size": 4} | options)), free_bytes)


def cuda_model():
    model = FakeModel()
    model.device = torch.device("cuda", 0)
    return model


def test_named_limits_are_kept():
    """What was asked for is what the engine gets."""
    config = size(max_model_len=100, max_sequences=5, max_batched_tokens=20, kv_cache_bytes=60 * BLOCK_BYTES)
    assert (config.max_model_len, config.max_sequences, config.max_batched_tokens) == (100, 5, 20)
    assert (config.num_blocks, config.block_size) == (60, 4)
    assert size(num_blocks=2000, max_model_len=10).num_blocks == 2000
    assert not size(prefix_cache=False).enable_prefix_cache


def test_the_model_decides_where_nothing_is_said():
    """Without flags the context is the model's, where memory allows."""
    assert size().max_model_len == FakeModel().info.max_position_embeddings


def test_the_context_is_cut_to_the_blocks_unless_it_was_asked_for():
    """A default context shrinks to what the KV cache holds; one that was named is an error that says the remedy."""
    assert size(kv_cache_bytes=10 * BLOCK_BYTES).max_model_len == 40
    with pytest.raises(SizingError, match=r"--max-model-len 41 needs 11.*raise --kv-cache-bytes.*lower.* to 40"):
        size(kv_cache_bytes=10 * BLOCK_BYTES, max_model_len=41)
    with pytest.raises(SizingError, match="no memory for one KV block"):
        size(kv_cache_bytes=1)


def test_the_share_of_a_gpu():
    """On a GPU the KV cache takes its share of free memory, leaves what else is needed, and stops at what counts."""
    free = (256 << 20) + 100 + 3000 * BLOCK_BYTES
    assert size(free_bytes=free, model=cuda_model(), kv_cache_share=1.0, max_model_len=400).num_blocks == 3000
    few = size(free_bytes=GIB, model=cuda_model(), kv_cache_share=0.0005, max_model_len=400)
    assert few.num_blocks == int(GIB * 0.0005) // BLOCK_BYTES
    assert size(free_bytes=64 * GIB, model=cuda_model(), max_model_len=400).num_blocks == 64 * 100


def test_a_cpu_is_not_filled_by_default():
    """On a CPU the default is room for a few long or many short sequences, not a share of all memory."""
    assert size(free_bytes=64 * GIB).num_blocks == 64 * 512 // 4
    assert size(free_bytes=64 * GIB, kv_cache_share=0.5).num_blocks == 64 * 1024


def test_the_worst_item_sizes_the_encoder_cache():
    """The encoder cache holds at least the worst legal item; 0 bytes means no more, and nothing is retained."""
    worst = 40 * 32
    assert size(encoder_cache_bytes=10).encoder_cache_bytes == worst
    assert size(encoder_cache_bytes=10).retain_encoded
    assert size(encoder_cache_bytes=5000).encoder_cache_bytes == 5000
    none = size(encoder_cache_bytes=0)
    assert (none.encoder_cache_bytes, none.retain_encoded, none.max_item_tokens) == (worst, False, 40)
    assert size(max_model_len=8, encoder_cache_bytes=0).encoder_cache_bytes == 8 * 32
    assert not size(retain_encoded=False).retain_encoded


def test_sequences_do_not_outnumber_the_tokens_of_a_step():
    """Every running sequence gets a token in every step."""
    assert size(max_batched_tokens=16).max_sequences == 16


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"max_model_len": 0}, "--max-model-len"),
        ({"max_model_len": 5000}, "--max-model-len"),
        ({"max_sequences": 0}, "--max-sequences"),
        ({"block_size": 0}, "--block-size"),
        ({"kv_cache_share": 1.5}, "--kv-cache-share"),
    ],
)
def test_limits_out_of_range(options, flag):
    """A limit that makes no sense is named by its flag."""
    with pytest.raises(SizingError, match=flag):
        size(**options)


def test_a_model_for_text_alone():
    """A model that takes no items has an encoder cache all the same, and no item sizes it."""
    model = FakeModel()
    model.info = dataclasses.replace(model.info, modalities=())
    model.worst_items = lambda max_tokens: []  # type: ignore[method-assign]
    assert size(model=model, encoder_cache_bytes=0).encoder_cache_bytes == 0


def hybrid(device="cpu"):
    model = StatefulModel()
    model.state_shape = StateShape(1, 0, 0, 1, 100, 25, torch.float32)  # 10,000 bytes a slot
    model.device = torch.device(device, 0) if device == "cuda" else torch.device(device)
    return model


def test_states_come_before_blocks():
    """Slots of running sequences and checkpoints are taken off the memory, and KV blocks get the rest."""
    config = size(
        model=hybrid(), max_sequences=4, state_checkpoints=5, kv_cache_bytes=9 * 10_000 + 30 * BLOCK_BYTES + 100
    )
    assert (config.max_sequences, config.state_checkpoints, config.num_blocks) == (4, 5, 30)
    assert config.enable_prefix_cache
    assert (config.passing_checkpoints, size(model=hybrid(), state_passing_share=0.25).passing_checkpoints) == (2, 32)
    free = (256 << 20) + 100 + 9 * 10_000 + 300 * BLOCK_BYTES
    model = hybrid("cuda")
    config = size(free, model, max_sequences=4, state_checkpoints=5, max_model_len=400, kv_cache_share=1.0)
    assert config.num_blocks == 300


def test_checkpoints_by_default():
    """Unless they are named there are two checkpoints a sequence, or a quarter of what running states leave."""
    assert size(model=hybrid(), max_sequences=8, kv_cache_bytes=100 * 10_000).state_checkpoints == 16
    assert size(model=hybrid(), max_sequences=8, kv_cache_bytes=40 * 10_000).state_checkpoints == 8
    assert size(model=hybrid(), num_blocks=100, max_model_len=64).state_checkpoints == 2 * 64
    assert size(model=FakeModel(), max_sequences=8).state_checkpoints == 0


def test_no_checkpoints_no_prefix_cache():
    """Blocks without states are of no use to a hybrid model, nor states without blocks."""
    none = size(model=hybrid(), state_checkpoints=0)
    assert (none.state_checkpoints, none.enable_prefix_cache) == (0, False)
    off = size(model=hybrid(), prefix_cache=False)
    assert (off.state_checkpoints, off.enable_prefix_cache) == (0, False)
    assert size(model=FakeModel(), state_checkpoints=0).enable_prefix_cache


def test_fewer_sequences_where_their_states_would_take_all():
    """A default number of sequences gives way, so that half of the memory is left; one that was named does not."""
    assert size(model=hybrid(), kv_cache_bytes=40 * 10_000).max_sequences == 20
    assert size(model=hybrid(), kv_cache_bytes=400 * 10_000).max_sequences == 64
    assert size(model=hybrid(), kv_cache_bytes=40 * 10_000, max_sequences=30).max_sequences == 30


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"max_sequences": 50},
            r"--max-sequences 50 needs.*lower --max-sequences to 40 or less, or raise --kv-cache-bytes",
        ),
        ({"kv_cache_bytes": 9_000}, r"--max-sequences 1 needs.*MiB: raise --kv-cache-bytes or --kv-cache-share"),
        ({"max_sequences": 20, "state_checkpoints": 21}, r"--state-checkpoints 21 needs.*lower it to 20 or less, or"),
        ({"state_passing_share": 1.5}, r"--state-passing-share 1.5: 0 to 1"),
        ({"state_checkpoints": -1}, r"--state-checkpoints -1: at least 0"),
        (
            {"max_sequences": 38, "max_model_len": 4000},
            r"beside \d+ MiB of rec.*lower .*, --max-sequences or --state-ch",
        ),
    ],
)
def test_states_that_do_not_fit(options, text):
    """States that do not fit are an error of one line that names the flag to change, and to what."""
    with pytest.raises(SizingError, match=text) as caught:
        size(model=hybrid(), **({"kv_cache_bytes": 40 * 10_000} | options))
    assert "\n" not in str(caught.value)


def test_measured_needs_are_left_free():
    """On a GPU, KV blocks fill what measured steps and encoded items leave, up to the share."""
    needs = MemoryNeeds(7 << 20, 9 << 20, recordings_bytes=3 << 20, libraries_bytes=5 << 30, is_measured=True)
    free = (256 << 20) + (12 << 20) + 3000 * BLOCK_BYTES
    options = EngineOptions(block_size=4, max_model_len=400)
    assert size_engine(cuda_model(), replace(options, kv_cache_share=1.0), free, needs).num_blocks == 3000
    few = size_engine(cuda_model(), replace(options, kv_cache_share=0.001), free, needs)
    assert few.num_blocks == int(free * 0.001) // BLOCK_BYTES


def test_measured_needs_that_do_not_fit():
    """Steps that leave no room for a KV block are an error that names the flags to lower."""
    needs = MemoryNeeds(0, 900 << 20, is_measured=True)
    with pytest.raises(
        SizingError, match=r"largest steps take 900 MiB and encoded items 256 MiB.*1024 MiB.*lower --max"
    ):
        size_engine(cuda_model(), EngineOptions(block_size=4), GIB, needs)


def test_caches_of_a_named_size_are_compared_with_what_is_free():
    """Caches that the user sized are refused where they cannot be allocated, and warned of where steps may fail."""
    needs = MemoryNeeds(0, 300 << 20, recordings_bytes=100 << 20, is_measured=True)
    options = EngineOptions(block_size=4, max_model_len=400)
    for named in ({"kv_cache_bytes": 960 << 20}, {"num_blocks": (960 << 20) // BLOCK_BYTES}):
        with pytest.raises(SizingError, match=r"take 960 MiB and recorded steps 100 MiB, and 1024 MiB.*--num-blocks"):
            size_engine(cuda_model(), replace(options, **named), GIB, needs)
    with capture_logs() as logs:
        config = size_engine(cuda_model(), replace(options, kv_cache_bytes=500 << 20), GIB, needs)
    assert config.num_blocks == (500 << 20) // BLOCK_BYTES
    [warning] = logs
    assert (warning["event"], warning["caches"], warning["short"]) == ("memory_overcommitted", "500 MiB", "132 MiB")
    with capture_logs() as logs:
        size_engine(cuda_model(), replace(options, kv_cache_bytes=300 << 20), GIB, needs)
    assert not logs
