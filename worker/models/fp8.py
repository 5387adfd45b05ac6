"""FP8 checkpoints: e4m3 numbers with one scale for each block of a matrix, multiplied out while loading.

The scale of `x.weight` is `x.weight_scale_inv`, that of a fused `gate_up_proj` is `gate_up_proj_scale_inv`: fp32, bf16,
or a power of two as a byte (ue8m0, its own type or uint8).

Next: worker/models/checkpoint.py
"""

from collections.abc import Mapping
from typing import Any

import torch

SCALE_SUFFIX = "_scale_inv"
FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
Block = tuple[int, int]
"""Rows and columns that share a scale."""

_DEFAULT_BLOCK = (128, 128)
_UE8M0_BIAS = 127


def read_block(config: Mapping[str, Any]) -> Block:
    """Return the block of config.json's `quantization_config`.

    Raises:
        ValueError: another method of quantisation, or a block that is no pair of sizes.
    """
    quantization = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not quantization:
        return _DEFAULT_BLOCK
    method = quantization.get("quant_method")
    if method != "fp8":
        raise ValueError(f"config.json: quantization_config.quant_method {method!r} is not served; fp8 is")
    block = quantization.get("weight_block_size") or _DEFAULT_BLOCK
    if len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        raise ValueError(f"config.json: quantization_config.weight_block_size {block!r} is no pair of sizes")
    return block[0], block[1]


def dequantised(weight: torch.Tensor, scale: torch.Tensor, block: Block) -> torch.Tensor:
    """Return a matrix with its scales multiplied in, fp32 (rows, columns).

    Args:
        weight: e4m3 or e5m2 (rows, columns).
        scale: one element, or one for each block, (rows, columns) / block rounded up. A grid of another size counts
            where it divides the matrix evenly.
        block: rows and columns of a block.

    Raises:
        ValueError: the scales do not fit the matrix.
    """
    factors = _factors(scale)
    if factors.numel() == 1:
        return weight.float() * factors.reshape(())
    height, width = _block_of(weight, factors, block)
    rows = weight.float()
    columns = rows.shape[1]
    for band, band_factors in zip(rows.split(height), factors, strict=True):
        band *= band_factors.repeat_interleave(width)[:columns]
    return rows


def _factors(scale: torch.Tensor) -> torch.Tensor:
    if scale.dtype is torch.uint8:
        return (scale.float() - _UE8M0_BIAS).exp2()
    return scale.float()


def _block_of(weight: torch.Tensor, factors: torch.Tensor, block: Block) -> Block:
    shape, grid = tuple(weight.shape), tuple(factors.shape)
    if grid == tuple(-(-size // step) for size, step in zip(shape, block, strict=True)):
        return block
    if len(grid) == 2 and all(size % count == 0 for size, count in zip(shape, grid, strict=True)):
        return shape[0] // grid[0], shape[1] // grid[1]
    raise ValueError(f"scales {list(grid)} do not fit a matrix {list(shape)} in blocks of {list(block)}")
