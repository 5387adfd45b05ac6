"""What the tests of CUDA ops share: where they run, inputs with guards around them, and how errors are judged.

Next: tests/unit/kernels/cuda/conftest.py
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tessera_kernels import cuda

_BUILT = Path(__file__).resolve().parents[1] / "kernels" / "build" / "libtessera_emulated.so"
EMULATED = Path(os.environ.get("TESSERA_EMULATED_LIBRARY", _BUILT))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")

# RMS of the error over RMS of the exact result: a few units in the last place of what storage holds.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}

# Largest ratio seen in this run, by op and type; tests/error_ratios.py prints it after the tests.
SEEN: dict[str, dict[torch.dtype, float]] = defaultdict(dict)


@cache
def emulated_library(path: Path = EMULATED) -> cuda.OpLibrary | None:
    """Return the ops compiled for the CPU, None where they are not built."""
    return cuda.load(path, "tessera_emulated", "cpu") if path.is_file() else None


@dataclass(frozen=True)
class Target:
    """Where a test of an op runs.

    Args:
        name: "forward" or "backward" (emulated, by the order of threads) or "cuda".
        library: whose ops run.
    """

    name: str
    library: cuda.OpLibrary

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return torch.device(self.library.device_type)

    @property
    def ops(self) -> Any:
        """The ops as torch.ops has them."""
        return getattr(torch.ops, self.library.space)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        """Return numbers that depend on shape and seed alone, with NaN all around them in memory."""
        generator = torch.Generator().manual_seed(seed * 1000003 + sum(shape))
        return self.guarded(torch.randn(*shape, generator=generator).to(dtype))

    def guarded(self, x: torch.Tensor) -> torch.Tensor:
        """Return a copy on the device that lies amid NaN (floats) or large numbers, 64 elements on either side.

        What an op reads beside it spoils its result; see `check_guards` for what it writes there.
        """
        fill = NAN if x.dtype.is_floating_point else torch.iinfo(x.dtype).max
        memory = torch.full((x.numel() + 128,), fill, dtype=x.dtype)
        memory[64 : 64 + x.numel()] = x.flatten()
        return memory.to(self.device)[64 : 64 + x.numel()].view(x.shape)


def strided(x: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """Return the same numbers in rows that lie `columns` NaNs apart."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + columns), NAN, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def check_guards(*tensors: torch.Tensor) -> None:
    """Check that nothing was written beside tensors that `Target.guarded` made."""
    for x in tensors:
        memory = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
        sides = torch.cat((memory[:64], memory[64 + x.numel() :])).cpu()
        assert sides.numel() == 128
        assert bool(sides.isnan().all() if x.dtype.is_floating_point else (sides == torch.iinfo(x.dtype).max).all())


def check_error(op: str, ours: torch.Tensor, exact: torch.Tensor, factor: float = 1.0) -> None:
    """Check an op's result against the exact one, and note its error.

    Args:
        op: name.
        ours: result, of the type that is judged.
        exact: the same in float64.
        factor: of the type's limit, for ops whose intermediate results are rounded as well.
    """
    assert ours.shape == exact.shape
    assert exact.dtype is torch.float64
    if not ours.numel():
        return
    wide = ours.detach().cpu().double()
    exact = exact.cpu()
    assert not wide.isnan().any(), f"{op} left NaN"
    scale = exact.square().mean().sqrt()
    ratio = float((wide - exact).square().mean().sqrt() / scale) if scale > 0 else float(wide.abs().max())
    SEEN[op][ours.dtype] = max(SEEN[op].get(ours.dtype, 0.0), ratio)
    assert ratio <= factor * LIMITS[ours.dtype], f"{op} in {ours.dtype}: RMS error ratio {ratio:.2e}"


def check_op(op: Any, arguments: Sequence[Any]) -> None:
    """Check schema, fake and tracing of an op with torch's own checker.

    Args:
        op: of `Target.ops`, as `target.ops.rms_norm`.
        arguments: of one call.
    """
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op.default, tuple(arguments), test_utils=checks)
