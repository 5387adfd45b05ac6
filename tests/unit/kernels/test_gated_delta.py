"""Linear attention against its formulas in float64: the C++ ops in every build that runs here, and both torch forms.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

from collections.abc import Iterator

import pytest
import torch

from tessera_kernels import ops, reference_gated_delta
from tests.linear_attention import (
    NAN,
    STEPS,
    Rule,
    exact_conv,
    exact_rule,
    make_rule,
    make_sequences,
    make_states,
    randn,
)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that what an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(ours: torch.Tensor, exact: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Check the largest error, relative to the largest value; NaN must stand where it stood, and nowhere else."""
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan())
    error = (ours.double() - exact.double()).nan_to_num().abs()
    assert error.numel() == 0 or error.max() <= tolerance * exact.double().nan_to_num().abs().max().clamp(min=1)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize(("channels", "taps"), [(37, 4), (300, 2)])
def test_causal_conv(query_lens: tuple[int, ...], kv_lens: tuple[int, ...], channels: int, taps: int) -> None:
    """Each row sees its own sequence's last inputs, across steps too; slots of others are neither read nor written."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)])
    x, weight = randn(sum(query_lens), channels + 5)[:, 2:-3], randn(taps, channels)
    states = make_states(sequences, (channels, taps - 1))
    exact_states, torch_states = states.double(), states.clone()
    exact = exact_conv(x, weight, exact_states, sequences)
    assert_close(ops.causal_conv(x, weight, states, sequences), exact)
    assert_close(states, exact_states)
    assert_close(reference_gated_delta.causal_conv(x, weight, torch_states, sequences), exact)
    assert_close(torch_states, exact_states)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("query_lens", "kv_lens"), STEPS)
@pytest.mark.parametrize(
    ("key_heads", "heads", "key_dim", "value_dim"), [(2, 2, 16, 16), (1, 3, 7, 45), (2, 4, 33, 64)]
)
def test_gated_delta_rule(
    query_lens: tuple[int, ...], kv_lens: tuple[int, ...], key_heads: int, heads: int, key_dim: int, value_dim: int
) -> None:
    """Reads and states equal the rule's formulas in every form; slots of others are neither read nor written."""
    sequences = make_sequences(query_lens, kv_lens, [5, 2, 7, 0][: len(query_lens)])
    rule = make_rule(sum(query_lens), key_heads, heads, key_dim, value_dim)
    states = make_states(sequences, (heads, key_dim, value_dim))
    exact_states, torch_states, wide_states = states.double(), states.clone(), states.double()
    exact = exact_rule(rule, exact_states, sequences)
    assert_close(rule.run(ops.gated_delta_rule, states, sequences), exact)
    assert_close(states, exact_states)
    assert_close(rule.run(reference_gated_delta.gated_delta_rule, torch_states, sequences), exact)
    assert_close(torch_states, exact_states)
    wide = rule.to(torch.float64).run(reference_gated_delta.gated_delta_rule, wide_states, sequences)
    assert_close(wide, exact, 1e-12)
    assert_close(wide_states, exact_states, 1e-12)


@pytest.mark.parametrize("length", [1, 64, 150])
def test_chunked_form_is_the_rule(length: int) -> None:
    """Solving whole chunks at once gives what token by token gives, however fast a head forgets."""
    query, key = (torch.nn.functional.normalize(randn(2, 3, length, 8, seed=s).double(), dim=-1) for s in (1, 2))
    value, state = randn(2, 3, length, 5).double(), randn(2, 3, 8, 5).double()
    decay, beta = -randn(2, 3, length).double().exp() * torch.tensor([1e-3, 1, 300])[:, None], randn(2, 3, length)
    arguments = (query, key, value, decay, beta.double().sigmoid(), state)
    for ours, exact in zip(
        reference_gated_delta.chunked(*arguments), reference_gated_delta.recurrent(*arguments), strict=True
    ):
        assert_close(ours, exact, 1e-12)


@pytest.mark.usefixtures("native")
def test_split_changes_nothing() -> None:
    """A sequence in one step, or split at any token, has the same reads and the same state, to the last bit."""
    rule = make_rule(9, 1, 2, 8, 16)
    whole, parts = torch.full((3, 2, 8, 16), NAN), torch.full((3, 2, 8, 16), NAN)
    exact = rule.run(ops.gated_delta_rule, whole, make_sequences((9,), (9,), [1]))
    done = []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        piece = Rule(rule.qkv[start:end], rule.gates[start:end], *rule[2:])
        done.append(piece.run(ops.gated_delta_rule, parts, make_sequences((end - start,), (end,), [1])))
    assert torch.equal(torch.cat(done), exact)
    assert torch.equal(parts[1], whole[1])


@pytest.mark.usefixtures("native")
def test_saturated_gates() -> None:
    """Gates at the end of their range forget all or nothing, without overflow."""
    rule = make_rule(4, 1, 1, 8, 8)
    gates = torch.tensor([[200.0, 200.0], [-200.0, -200.0], [200.0, -200.0], [-200.0, 200.0]])
    rule = Rule(rule.qkv, gates, torch.ones(1) * 50, torch.zeros(1), 1)
    sequences = make_sequences((4,), (6,), [0])
    states = make_states(sequences, (1, 8, 8))
    torch_states = states.clone()
    ours = rule.run(ops.gated_delta_rule, states, sequences)
    exact = rule.run(reference_gated_delta.gated_delta_rule, torch_states, sequences)
    assert not ours.isnan().any()
    assert_close(ours, exact)
    assert states[0].abs().max() == 0 == torch_states[0].abs().max()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("rows", "heads", "dim"), [(1, 1, 16), (5, 3, 37), (300, 4, 128), (0, 2, 8)])
def test_gated_rms_norm(rows: int, heads: int, dim: int) -> None:
    """Each head is normed by itself, then gated by SiLU; a gate of any size keeps it finite."""
    x, weight = randn(rows, heads, dim + 1)[..., 1:], randn(dim)
    gate = randn(rows, heads * dim + 2)[:, 1:-1] * 100
    out = ops.gated_rms_norm(x, gate, weight, 1e-6)
    wide, by = x.double(), gate.double().reshape(rows, heads, dim)
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double() * by * by.sigmoid()
    assert_close(out, exact.flatten(1))
    assert_close(reference_gated_delta.gated_rms_norm(x, gate, weight, 1e-6), exact.flatten(1))


def test_bfloat16() -> None:
    """In bf16 the torch forms keep the recurrent state in fp32 and everything else in bf16."""
    sequences = make_sequences((5, 1), (5, 3), [1, 0])
    x, weight = randn(6, 24).bfloat16(), randn(4, 24).bfloat16()
    states = make_states(sequences, (24, 3), torch.bfloat16)
    exact_states = states.double()
    exact = exact_conv(x, weight, exact_states, sequences)
    mixed = ops.causal_conv(x, weight, states, sequences)
    assert mixed.dtype is states.dtype is torch.bfloat16
    assert_close(mixed, exact, 1e-2)
    assert_close(states, exact_states, 0.0)
    rule = make_rule(6, 1, 1, 8, 8)
    rule = Rule(rule.qkv.bfloat16(), rule.gates.bfloat16(), rule.rate, rule.bias, 1)
    states = make_states(sequences, (1, 8, 8))
    exact_states = states.double()
    exact = exact_rule(rule, exact_states, sequences)
    read = rule.run(ops.gated_delta_rule, states, sequences)
    assert read.dtype is torch.bfloat16
    assert_close(read, exact, 1e-2)
    assert_close(states, exact_states, 1e-2)  # the update gate is bf16
    normed = ops.gated_rms_norm(read, read[:, 0], torch.ones(8), 1e-6)
    assert normed.dtype is torch.bfloat16
