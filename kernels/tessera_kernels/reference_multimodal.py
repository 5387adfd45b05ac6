"""How items enter a step of the language model, in plain numpy and torch: positions, and rows in the stream.

Next: kernels/tessera_kernels/reference_gated_delta.py
"""

import numpy as np
import torch


def mrope_positions(segments: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the positions (time, height, width) of a step's tokens.

    Token k of text stands at base + k on all axes, token k of an item at
    base + (k // (height width), k // width mod height, k mod width). A decode is text of one token.

    Args:
        segments: int64 (count, 6), one row each, ascending by target and apart from each other: target (first token in
            the step), count (tokens), base (first position), height and width (of its grid in tokens, 0 for text),
            offset (its tokens before the step). What lies outside the step is left out.
        tokens: of the step.

    Returns:
        int64 (3, tokens); zero for tokens of no segment.
    """
    rows = segments.cpu().numpy()
    if len(rows) == tokens and (rows[:, 0] == np.arange(tokens)).all() and (rows[:, (1, 3)] == (1, 0)).all():
        decodes = torch.from_numpy(np.tile(rows[:, 2] + rows[:, 5], (3, 1)))  # so common that it is worth a line
        return decodes.to(segments.device)
    positions = np.zeros((3, tokens), np.int64)
    for target, count, base, height, width, offset in rows.tolist():
        first, last = max(target, 0), min(target + count, tokens)
        if first >= last:
            continue
        k = np.arange(first - target + offset, last - target + offset)
        area = height * width
        axes = (k // area, k // width % height, k % width) if area else (k, k, k)
        for axis, values in zip(positions, axes, strict=True):
            axis[first:last] = base + values
    return torch.from_numpy(positions).to(segments.device)


def merge_embeddings(
    hidden: torch.Tensor, features: torch.Tensor, source: torch.Tensor, target: torch.Tensor, add: bool = False
) -> None:
    """Put rows of items into the stream, or add them to it, *in place*.

    Args:
        hidden: (n, width).
        features: (k, width).
        source: int64 (count, 2), half-open ranges of rows of the features.
        target: int64 (count, 2), half-open ranges of rows of the stream, as long each; ascending and disjoint.
        add: whether features are added, as DeepStack's are, rather than put in the rows' place.
    """
    for (first, last), (start, end) in zip(source.tolist(), target.tolist(), strict=True):
        if add:
            hidden[start:end] += features[first:last]
        else:
            hidden[start:end] = features[first:last]
