"""Fourier position embedding: which frequencies are kept, what each KV head turns by, and the order of the rows."""

import math

import pytest
import torch

from tests.unit.worker.layers.sources import DictSource
from worker.layers.attention import Attention, AttentionShape, AttentionStep
from worker.layers.fope import FourierShape, FourierTable, GroupedAttention, count_frequencies
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
        assert rows.shape == (3 * KV_HEADS, HEAD_DIM // 2)
        for token, position in enumerate((0, 5, 900)):
            angles = position * 100.0 ** (-torch.arange(0, 6, 2) / HEAD_DIM)
            for head in range(KV_HEADS):
                expected = torch.ones(HEAD_DIM // 2)
                expected[:3] = values(angles) @ mixing[name][head if per_head else 0]
                assert torch.allclose(rows[token * KV_HEADS + head], expected, atol=1e-4)


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


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (6, 6), (6, 1), (1, 1)])
def test_without_mixing_it_is_rotary_attention(tokens: int, heads: int, kv_heads: int) -> None:
    """Rows group by group, plain tables for every head: outputs, keys and values are those of the usual layer."""
    shape = AttentionShape(HIDDEN, heads, kv_heads, HEAD_DIM, 1e-6, bias=True)
    source = DictSource(
        {
            name: matrix[: (heads if name[0] == "q" else kv_heads) * HEAD_DIM] if "_proj" in name else matrix
            for name, matrix in _repeated(weights()).items()
            if name[0] != "o"
        }
        | {"o_proj.weight": weights()["o_proj.weight"][:, : heads * HEAD_DIM], "o_proj.bias": weights()["o_proj.bias"]}
    )
    positions = torch.arange(tokens).expand(3, tokens)
    table = FourierTable(source, FourierShape(1e4, HEAD_DIM, kv_heads, HEAD_DIM // 2, mixed=False))
    plain = RotaryTable(1e4, HEAD_DIM, [0] * (HEAD_DIM // 2), torch.device("cpu"))
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2))
    results = []
    for layer, tables in ((GroupedAttention.load(source, shape), table), (Attention.load(source, shape), plain)):
        cache = KVCache(1, 3, 4, kv_heads, HEAD_DIM, torch.float32, "cpu")
        cache.blocks.zero_()
        out = layer(x, step(*tables(positions), tokens), cache.layer(0), None)
        assert layer.size_bytes > 0
        results.append((out, cache.blocks))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def _repeated(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make room for more KV heads."""
    return {
        name: torch.cat([tensor] * 3) if name[0] in "kv" and "_proj" in name else tensor
        for name, tensor in tensors.items()
    }
