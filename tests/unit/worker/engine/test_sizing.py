"""Sizes follow from model, flags and memory; what does not fit says which flag mends it."""

import dataclasses

import pytest
import torch

from tests.unit.worker.engine.fakes import FakeModel
from worker.engine.sizing import EngineOptions, SizingError, size_engine

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
