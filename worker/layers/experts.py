"""Reading the weights of experts, whichever way a checkpoint lays them out.

- one tensor for each: `{expert}.gate_proj.weight` (inner, hidden), `up_proj`, `down_proj` (hidden, inner);
- fused: `gate_up_proj` (experts, 2 * inner, hidden) and `down_proj` (experts, hidden, inner);
- fused and transposed: `gate_up_proj` (experts, hidden, 2 * inner) and `down_proj` (experts, inner, hidden).

A fused pair tells by its shapes whether it is transposed: at most one of the two can be square.

Next: kernels/tessera_kernels/moe.py
"""

from tessera_kernels import ops
from worker.layers.source import WeightSource


def load_experts(source: WeightSource, num_experts: int, hidden_size: int, inner_size: int) -> ops.ExpertWeights:
    """Read the routed experts of a layer, one at a time.

    Args:
        source: the layer's `experts`.
        num_experts: how many.
        hidden_size: width of the stream.
        inner_size: width inside an expert.

    Raises:
        CheckpointError: a tensor is missing or has a shape of no layout.
    """
    experts = ops.moe.create(num_experts, hidden_size, inner_size, source.dtype, source.device)
    stored = source.shape("gate_up_proj")
    if stored is None:
        _read_single(source, experts)
    else:
        _read_fused(source, experts, stored)
    experts.seal()
    return experts


def _read_single(source: WeightSource, experts: ops.ExpertWeights) -> None:
    inner, hidden = experts.inner_size, experts.hidden_size
    for index in range(experts.num_experts):
        expert = source.under(str(index))
        experts.write_gate_up(index, 0, expert.mapped("gate_proj.weight", (inner, hidden)))
        experts.write_gate_up(index, inner, expert.mapped("up_proj.weight", (inner, hidden)))
        experts.write_down(index, 0, expert.mapped("down_proj.weight", (hidden, inner)))


def _read_fused(source: WeightSource, experts: ops.ExpertWeights, stored: tuple[int, ...]) -> None:
    gate_up = (2 * experts.inner_size, experts.hidden_size)
    down = (experts.hidden_size, experts.inner_size)
    other = source.shape("down_proj")
    transposed = stored[1:] == gate_up[::-1] and (other is None or other[1:] == down[::-1])
    for name, shape, write in (
        ("gate_up_proj", gate_up, experts.write_gate_up),
        ("down_proj", down, experts.write_down),
    ):
        full = (experts.num_experts, *(shape[::-1] if transposed else shape))
        for index, matrix in enumerate(source.slices(name, full)):
            write(index, 0, matrix.t() if transposed else matrix)
