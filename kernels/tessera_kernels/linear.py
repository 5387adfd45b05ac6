"""Weights of linear layers, each kept once, in the form that its implementation reads fastest.

A weight is made empty, filled row range by row range from the checkpoint's mapped file, then sealed; so loading needs
no second copy. `create` picks the implementation:

- "torch": row-major, `F.linear` (CUDA, where our own ops add what follows the product, and CPU types without a kernel);
- "onednn": fp32 on the CPU where our library is not built;
- "cpp": fp32 on the CPU, panels of 16 output rows, our own GEMM.

Next: kernels/tessera_kernels/cpu.py
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F

from tessera_kernels import cpu, cuda, invariance, reference
from tessera_kernels.memory import Arena

ACTIVATIONS = ("none", "gelu_tanh", "gelu", "swiglu")
ARENA = Arena()
PANEL = 16  # rows of a packed panel, kPanel in csrc/cpu/vec.h
_CONVERTED_ROWS = 1024  # rows of another type that are converted at a time
_ONEDNN_BATCH_HINT = 8  # rows: within a few percent of the best packing at ~300 rows, twice as fast at 8 as that for 1


class LinearWeight(ABC):
    """A (out_features, in_features) matrix with its bias and activation.

    Args:
        out_features: rows. With "swiglu", gate and up rows together, gate first; the output has half as many columns.
        in_features: columns.
        dtype: storage type.
        device: where it lives.
        bias: whether there is one.
        activation: one of ACTIVATIONS.
    """

    implementation: str
    reads_rows = True  # whether `read_rows` works

    def __init__(
        self,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        bias: bool = False,
        activation: str = "none",
    ) -> None:
        assert activation in ACTIVATIONS
        self.out_features = out_features
        self.in_features = in_features
        self.dtype = dtype
        self.device = device
        self.activation = activation
        self.bias = torch.zeros(out_features, dtype=dtype, device=device) if bias else None

    @abstractmethod
    def write_rows(self, start: int, rows: torch.Tensor) -> None:
        """Copy rows [start, start + len) of the matrix in. rows: (k, in_features), any float type, on the CPU."""

    def write_bias(self, start: int, values: torch.Tensor) -> None:
        """Copy bias elements [start, start + len) in. values: (k,), any float type."""
        assert self.bias is not None
        self.bias[start : start + values.shape[0]] = values.to(self.device)

    def seal(self) -> None:  # noqa: B027 - most have nothing left to do
        """Finish the packing; no rows are written after it."""

    @abstractmethod
    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return activation(x @ weight.T + bias). x: (n, in_features) -> (n, out_features), swiglu: half of it."""

    def deferred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the result as `apply` does, and a bias that is still to be added to it.

        What reads a product next, as a norm, can add its bias on the way and save a pass over it.

        Args:
            x: (n, in_features).

        Returns:
            What `apply` returns, less the bias where one is given; (out_features,), None where nothing is missing.
        """
        return self.apply(x), None

    @abstractmethod
    def read_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows by index, as a tied embedding does. ids: (n,) int64 -> (n, in_features)."""

    @property
    def size_bytes(self) -> int:
        """Bytes kept, bias included."""
        bias = 0 if self.bias is None else self.out_features
        return (self.out_features * self.in_features + bias) * self.dtype.itemsize


def _activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    match activation:
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu":
            return F.gelu(x)
        case "swiglu":
            return reference.swiglu(x)
        case _:
            return x


class TorchWeight(LinearWeight):
    """Row-major, multiplied by torch."""

    implementation = "torch"

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.weight = torch.empty(self.out_features, self.in_features, dtype=self.dtype, device=self.device)

    def write_rows(self, start: int, rows: torch.Tensor) -> None:
        self.weight[start : start + rows.shape[0]].copy_(rows)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        if not cuda.serves(x):
            return _activate(F.linear(x, self.weight, self.bias), self.activation)
        if self.activation in ("gelu", "gelu_tanh"):
            out = self._product(x, None)
            cuda.ops().bias_gelu(out, self.bias, self.activation == "gelu_tanh")
            return out
        out = self._product(x, self.bias)
        return cuda.ops().swiglu(out) if self.activation == "swiglu" else out

    def deferred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.activation == "none" and cuda.serves(x):
            return self._product(x, None), self.bias
        return self.apply(x), None

    def _product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return x @ weight.T + bias on CUDA.

        cuBLAS chooses how it cuts a sum by the number of rows; our grouped product, with one group, does not.
        """
        if not invariance.enabled():
            return F.linear(x, self.weight, bias)
        rows = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
        starts = torch.arange(2, dtype=torch.int32, device=x.device) * x.shape[0]
        out = cuda.ops().grouped_linear(x.contiguous(), self.weight[None], rows, starts, False)
        return out if bias is None else out.add_(bias)

    def read_rows(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight)


class OneDnnWeight(TorchWeight):
    """Reordered by oneDNN when sealed; its rows cannot be read back."""

    implementation = "onednn"
    reads_rows = False

    def seal(self) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, _ONEDNN_BATCH_HINT)
        del self.weight

    deferred = LinearWeight.deferred

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        fused, algorithm = ("gelu", "tanh") if self.activation == "gelu_tanh" else ("none", "")
        out = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, fused, [], algorithm)
        return out if fused == "gelu" else _activate(out, self.activation)


class CppWeight(LinearWeight):
    """Panels of 16 rows for our own GEMM; with "swiglu", panels of gate and up rows alternate."""

    implementation = "cpp"
    _CODES: ClassVar = {"none": 0, "gelu_tanh": 1, "swiglu": 2, "gelu": 0}

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._gated = self.activation == "swiglu"
        assert not (self._gated and self.bias is not None)
        parts = 2 if self._gated else 1
        panels = parts * -(-self.out_features // (parts * PANEL))
        self._packed = ARENA.take(panels * PANEL * self.in_features)
        if self.out_features % (parts * PANEL):
            self._packed.zero_()

    def write_rows(self, start: int, rows: torch.Tensor) -> None:
        pack_matrix(rows, start, self.out_features, self._gated, self._packed)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        code, fixed_order = self._CODES[self.activation], invariance.enabled()
        out = cpu.linear(x, self._packed, self.bias, self.out_features, code, fixed_order)
        return invariance.elementwise(F.gelu, out) if self.activation == "gelu" else out

    def read_rows(self, ids: torch.Tensor) -> torch.Tensor:
        assert not self._gated
        return cpu.read_rows(self._packed, ids, self.in_features)


def pack_matrix(rows: torch.Tensor, start: int, out_features: int, gated: bool, packed: torch.Tensor) -> None:
    """Copy rows [start, start + len) of a matrix into its panels.

    Args:
        rows: (k, in_features), any float type and strides, on the CPU.
        start: first row.
        out_features: rows of the whole matrix.
        gated: whether panels of its first and second half alternate.
        packed: fp32, the panels of the matrix.
    """
    for first in range(0, rows.shape[0], _CONVERTED_ROWS):
        part = rows[first : first + _CONVERTED_ROWS].to(torch.float32).contiguous()
        cpu.pack_rows(part, start + first, out_features, gated, packed)


def create(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    bias: bool = False,
    activation: str = "none",
) -> LinearWeight:
    """Return an empty weight of the fastest implementation here; arguments as for `LinearWeight`."""
    return _choose(dtype, device)(out_features, in_features, dtype, device, bias=bias, activation=activation)


def implementation(dtype: torch.dtype, device: torch.device) -> str:
    """Return the name of the implementation that `create` chooses."""
    return _choose(dtype, device).implementation


def _choose(dtype: torch.dtype, device: torch.device) -> type[LinearWeight]:
    if cuda.runs_on(device, dtype):
        return TorchWeight
    if device.type == "cpu" and dtype is torch.float32 and cpu.available():
        return CppWeight
    if device.type == "cpu" and dtype is torch.float32 and torch.backends.mkldnn.is_available():
        return OneDnnWeight
    return TorchWeight
