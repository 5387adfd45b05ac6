"""Grouped experts: one product per projection over all tokens, each row by the weights of the expert it was sent to.

The weights of all experts of a layer are one store, made empty and filled expert by expert from the checkpoint's mapped
file, then sealed; so loading needs no second copy. `create` picks the implementation by device and type:

- "torch": row-major, a loop over the experts that were chosen, whose counts the host waits for (the reference);
- "cpp": fp32 on the CPU, panels of 16 output rows, our own grouped product;
- "cuda": row-major, our own grouped product, which the host learns nothing of.

Next: kernels/tessera_kernels/routing.py
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from tessera_kernels import cpu, cuda, invariance, reference
from tessera_kernels.linear import ARENA, PANEL, pack_matrix


class ExpertWeights(ABC):
    """Gate, up and down projections of a layer's experts.

    Args:
        num_experts: how many.
        hidden_size: columns of gate and up, rows of down.
        inner_size: rows of gate and of up, columns of down.
        dtype: storage type.
        device: where it lives.
    """

    implementation: str

    def __init__(
        self, num_experts: int, hidden_size: int, inner_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.inner_size = inner_size
        self.dtype = dtype
        self.device = device

    @abstractmethod
    def write_gate_up(self, expert: int, start: int, rows: torch.Tensor) -> None:
        """Copy rows [start, start + len) of an expert's gate (the first inner_size rows) and up (the rest) in.

        Args:
            expert: its index.
            start: first row of 2 * inner_size.
            rows: (k, hidden_size), any float type and strides, on the CPU.
        """

    @abstractmethod
    def write_down(self, expert: int, start: int, rows: torch.Tensor) -> None:
        """Copy rows [start, start + len) of an expert's down projection in. rows: (k, inner_size), as above."""

    def seal(self) -> None:  # noqa: B027 - most have nothing left to do
        """Finish the packing; nothing is written after it."""

    def apply(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Send each token to its experts and add up what they say, and what the shared expert has said.

        Args:
            x: (n, hidden_size).
            experts: (n, k), each in [0, num_experts), as `routing.choose_experts` returns them.
            weights: fp32 (n, k).
            shared: (n, hidden_size), the shared expert's answers; None: there is none.
            shared_gate: (n, 1), logits by whose sigmoid they count; None: they count in full.

        Returns:
            (n, hidden_size), type of x.
        """
        out = self._sum(x, experts, weights)
        if shared is None:
            return out
        if shared_gate is None:
            return out + shared
        return out.addcmul_(shared, invariance.elementwise(torch.sigmoid, shared_gate))

    @abstractmethod
    def _sum(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts say; see `apply`."""

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return 3 * self.num_experts * self.hidden_size * self.inner_size * self.dtype.itemsize


class TorchExperts(ExpertWeights):
    """Row-major, multiplied by torch."""

    implementation = "torch"

    def __init__(
        self, num_experts: int, hidden_size: int, inner_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(num_experts, hidden_size, inner_size, dtype, device)
        self.gate_up = torch.empty(num_experts, 2 * inner_size, hidden_size, dtype=dtype, device=device)
        self.down = torch.empty(num_experts, hidden_size, inner_size, dtype=dtype, device=device)

    def write_gate_up(self, expert: int, start: int, rows: torch.Tensor) -> None:
        self.gate_up[expert, start : start + rows.shape[0]].copy_(rows)

    def write_down(self, expert: int, start: int, rows: torch.Tensor) -> None:
        self.down[expert, start : start + rows.shape[0]].copy_(rows)

    def _sum(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return grouped_experts(x, experts, weights, self.gate_up, self.down)


class CudaExperts(TorchExperts):
    """Row-major, multiplied by our own grouped product, which one op combines; see csrc/grouped_gemm.cu."""

    implementation = "cuda"

    def apply(
        self,
        x: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> torch.Tensor:
        ops = cuda.ops()
        order, starts = ops.sort_by_expert(experts.to(torch.int32).contiguous(), self.num_experts)
        inner = ops.grouped_linear(x.contiguous(), self.gate_up, order, starts, True)
        answers = ops.grouped_linear(inner, self.down, order, starts, False)
        return ops.combine_experts(answers, weights.contiguous(), shared, shared_gate)


class CppExperts(ExpertWeights):
    """Panels of 16 rows for our own grouped product, all experts one after the other; see csrc/cpu/moe.cpp."""

    implementation = "cpp"

    def __init__(
        self, num_experts: int, hidden_size: int, inner_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(num_experts, hidden_size, inner_size, dtype, device)
        self._gate_up = self._allocate(2 * -(-inner_size // PANEL), hidden_size, inner_size % PANEL != 0)
        self._down = self._allocate(-(-hidden_size // PANEL), inner_size, hidden_size % PANEL != 0)

    def _allocate(self, panels: int, in_features: int, padded: bool) -> torch.Tensor:
        size = panels * PANEL * in_features
        packed = ARENA.take(self.num_experts * size).view(self.num_experts, size)
        return packed.zero_() if padded else packed

    def write_gate_up(self, expert: int, start: int, rows: torch.Tensor) -> None:
        pack_matrix(rows, start, 2 * self.inner_size, True, self._gate_up[expert])

    def write_down(self, expert: int, start: int, rows: torch.Tensor) -> None:
        pack_matrix(rows, start, self.hidden_size, False, self._down[expert])

    def _sum(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        assert x.dtype is weights.dtype is torch.float32 and experts.dtype is torch.int64
        assert x.shape[1] == self.hidden_size and experts.shape == weights.shape and experts.shape[0] == x.shape[0]
        x, experts, weights = x.contiguous(), experts.contiguous(), weights.contiguous()
        out = torch.empty_like(x)
        cpu.native().tessera_experts(
            x.data_ptr(), experts.data_ptr(), weights.data_ptr(), self._gate_up.data_ptr(), self._down.data_ptr(),
            out.data_ptr(), x.shape[0], experts.shape[1], self.num_experts, self.hidden_size, self.inner_size,
            invariance.enabled(), torch.get_num_threads(),
        )  # fmt: skip
        return out


def grouped_experts(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Return sum over j of weights[:, j] * down(silu(gate(x)) * up(x)) by expert experts[:, j], added up in order of j.

    Args:
        x: (n, hidden).
        experts: (n, k) int64, each in [0, num_experts).
        weights: fp32 (n, k).
        gate_up: (num_experts, 2 * inner, hidden), gate rows first.
        down: (num_experts, hidden, inner).

    Returns:
        (n, hidden), type of x; the sum is taken in fp32.
    """
    num_tokens, choices = experts.shape
    order = experts.flatten().argsort(stable=True)
    rows = x[order // choices]
    out = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(experts.flatten().bincount(minlength=gate_up.shape[0]).tolist()):
        if count:
            part = slice(start, start + count)
            out[order[part]] = F.linear(reference.swiglu(F.linear(rows[part], gate_up[expert])), down[expert])
            start += count
    return (out.view(num_tokens, choices, x.shape[1]).float() * weights[..., None]).sum(1).to(x.dtype)


def create(
    num_experts: int, hidden_size: int, inner_size: int, dtype: torch.dtype, device: torch.device
) -> ExpertWeights:
    """Return an empty store of the fastest implementation here; arguments as for `ExpertWeights`."""
    return _choose(dtype, device)(num_experts, hidden_size, inner_size, dtype, device)


def implementation(dtype: torch.dtype, device: torch.device) -> str:
    """Return the name of the implementation that `create` chooses."""
    return _choose(dtype, device).implementation


def _choose(dtype: torch.dtype, device: torch.device) -> type[ExpertWeights]:
    if cuda.runs_on(device, dtype):
        return CudaExperts
    return CppExperts if device.type == "cpu" and dtype is torch.float32 and cpu.available() else TorchExperts
