"""Fourier position embedding: which frequencies are kept, and what each KV head and its queries turn by."""

import math

import pytest
import torch

from tests.unit.worker.layers.sources import DictSource
from worker.layers.attention import Attention, AttentionShape, AttentionStep
from worker.layers.fope import FourierShape, FourierTable, count_frequencies
from worker.layers.kv_cache import KVCache
from worker.layers.rotary import RotaryTable

HEAD_DIM, HEADS, KV_HEADS, HIDDEN = 16, 6, 2, 24
SHAPE = AttentionShape(HIDDEN, HEADS, KV_HEADS, HEAD_DIM, 1e-6, bias=True)


def test_frequencies_that_turn_within_the_context_are_kept() -> None:
    """The published sizes keep 45 of 64; a number that is asked for wins; a longer context keeps more."""
    assert count_frequencies(5e6, 128, 262_144, None) == 45
    assert count_frequencies(5e6, 128, 262_144, 50) == 50
    assert count_frequencies(5e6, 128, 262_144, 100) == 64
    assert count_frequencies(5e6, 128, 1 << 40, None) == 64
    kept = count_frequencies(1e4, 32, 100, None)
    assert 1e4 ** (-2 * (kept - 1) / 32) > 2 * math.pi / 100 >= 1e4 ** (-2 * kept / 32)


@pytest.mark.parametrize("per_head", [True, False])
def test_tables_are_mixed_and_padded_with_ones(per_head: bool) -> None:
    """Cosines and sines go through each head's own matrix; frequencies that were dropped have cosine and sine 1."""
    generator = torch.Generator().manual_seed(0)
    mixing = {name: torch.randn(KV_HEADS, 3, 3, generator=generator) for name in ("cos_coef", "sin_coef")}
    stored = mixing if per_head else {name: matrix[0] for name, matrix in mixing.items()}
    table = FourierTable(DictSource(stored), FourierShape(100.0, HEAD_DIM, KV_HEADS, 3, per_head=per_head))
    positions = torch.tensor([[0, 5, 900]]).expand(3, 3)
    for name, values, rows in zip(("cos_coef", "sin_coef"), (torch.cos, torch.sin), table(positions), strict=True):
        assert rows.shape == ((3, KV_HEADS, HEAD_DIM // 2) if per_head else (3, HEAD_DIM // 2))
        for token, position in enumerate((0, 5, 900)):
            angles = position * 100.0 ** (-torch.arange(0, 6, 2) / HEAD_DIM)
            for head in range(KV_HEADS):
                expected = torch.ones(HEAD_DIM // 2)
                expected[:3] = values(angles) @ mixing[name][head if per_head else 0]
                assert torch.allclose(rows[token, head] if per_head else rows[token], expected, atol=1e-4)


def weights() -> dict[str, torch.Tensor]:
    """Random weights of an attention layer."""
    generator = torch.Generator().manual_seed(1)
    rows = {"q_proj": HEADS * HEAD_DIM, "k_proj": KV_HEADS * HEAD_DIM, "v_proj": KV_HEADS * HEAD_DIM}
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (count, HIDDEN) for name, count in rows.items()}
    shapes |= {f"{name}.bias": (count,) for name, count in rows.items()}
    shapes |= {"o_proj.weight": (HIDDEN, HEADS * HEAD_DIM), "o_proj.bias": (HIDDEN,)}
    shapes |= {"q_norm.weight": (HEAD_DIM,), "k_norm.weight": (HEAD_DIM,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def step(cos: torch.Tensor, sin: torch.Tensor, tokens: int) -> AttentionStep:
    """A prefill of one sequence."""
    lens = torch.tensor([tokens], dtype=torch.int32)
    return AttentionStep(
        cos, sin, torch.arange(tokens) + 4, torch.tensor([[1, 2]], dtype=torch.int32),
        torch.tensor([0, tokens], dtype=torch.int32), lens, (tokens,), (tokens,),
    )  # fmt: skip


def attention(heads: int, kv_heads: int) -> Attention:
    """A layer with so many heads."""
    rows = {"q": heads, "k": kv_heads, "v": kv_heads}
    source = {
        name: tensor[: rows[name[0]] * HEAD_DIM] if name[:6] in ("q_proj", "k_proj", "v_proj") else tensor
        for name, tensor in _repeated(weights()).items()
    }
    source["o_proj.weight"] = source["o_proj.weight"][:, : heads * HEAD_DIM]
    return Attention.load(DictSource(source), AttentionShape(HIDDEN, heads, kv_heads, HEAD_DIM, 1e-6, bias=True))


def run(layer: Attention, tables: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output, keys and values of a prefill."""
    cache = KVCache(1, 3, 4, layer.shape.num_kv_heads, HEAD_DIM, torch.float32, "cpu")
    cache.blocks.zero_()
    return layer(x, step(*tables, x.shape[0]), cache.layer(0), None), cache.blocks


def stream(tokens: int) -> torch.Tensor:
    """What goes into a layer."""
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tokens", [1, 7])
def test_without_mixing_it_is_rotary_attention(tokens: int) -> None:
    """Plain tables for every head: outputs, keys and values are those of the usual layer."""
    positions = torch.arange(tokens).expand(3, tokens)
    shape = FourierShape(1e4, HEAD_DIM, KV_HEADS, HEAD_DIM // 2, mixed=False)
    table = FourierTable(DictSource(weights()), shape)
    plain = RotaryTable(1e4, HEAD_DIM, [0] * (HEAD_DIM // 2), torch.device("cpu"))
    layer, x = attention(HEADS, KV_HEADS), stream(tokens)
    for ours, theirs in zip(run(layer, table(positions), x), run(layer, plain(positions), x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (6, 1), (1, 1)])
def test_each_kv_head_and_its_queries_turn_by_their_own_table(tokens: int, heads: int, kv_heads: int) -> None:
    """The keys of a head are those of a layer where all heads turn by its table, and so is what its queries read."""
    angles = torch.randn(tokens, kv_heads, HEAD_DIM // 2, generator=torch.Generator().manual_seed(3))
    layer, x = attention(heads, kv_heads), stream(tokens)
    layer.out.weight.write_rows(0, torch.eye(heads * HEAD_DIM)[:HIDDEN])  # what heads read, as far as it fits
    own = run(layer, (angles.cos(), angles.sin()), x)
    columns = heads // kv_heads * HEAD_DIM
    for head in range(kv_heads):
        alike = run(layer, (angles[:, head].cos(), angles[:, head].sin()), x)
        assert torch.allclose(own[1][:, :, :, head], alike[1][:, :, :, head], atol=1e-6)
        read = slice(head * columns, min((head + 1) * columns, HIDDEN))
        assert torch.allclose(own[0][:, read], alike[0][:, read], atol=1e-6)
        if kv_heads > 1:
            other = (head + 1) % kv_heads
            assert not torch.allclose(own[1][:, 0, :, other], alike[1][:, 0, :, other], atol=1e-2)


def _repeated(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make room for more KV heads."""
    return {
        name: torch.cat([tensor] * 3) if name[0] in "kv" and "_proj" in name else tensor
        for name, tensor in tensors.items()
    }
