"""FP8 as checkpoints store it, block by block in plain loops.

Next: tests/unit/worker/models/test_fp8.py
"""

import torch

E4M3_MAX = 448.0


def blocks(
    weight: torch.Tensor, block: tuple[int, int], ue8m0: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise a matrix, or each of a stack.

    Args:
        weight: (..., rows, columns).
        block: rows and columns that share a scale; the last ones may be smaller.
        ue8m0: whether scales are powers of two.

    Returns:
        e4m3 numbers, fp32 scales (..., blocks down, blocks across), and their product in fp32.
    """
    if weight.dim() == 3:
        parts = [blocks(matrix, block, ue8m0) for matrix in weight]
        return tuple(torch.stack(kind) for kind in zip(*parts, strict=True))  # type: ignore[return-value]
    rows, columns = weight.shape
    numbers = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    product = torch.empty(rows, columns)
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scale = weight[part].abs().max() / E4M3_MAX
            scales[i, j] = scale.log2().ceil().exp2() if ue8m0 else scale
            numbers[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            product[part] = numbers[part].float() * scales[i, j]
    return numbers, scales, product
