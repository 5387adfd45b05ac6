"""Items in a step of the language model: positions of their tokens, and their rows among those of text.

Next: kernels/tessera_kernels/reference_multimodal.py
"""

import torch

from tessera_kernels import cuda, reference_multimodal


def mrope_positions(segments: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the positions (time, height, width) of a step's tokens.

    Args:
        segments: int64 (count, 6), ascending: first token in the step, tokens, first position, height and width of the
            grid in tokens (0 for text), tokens before the step; see `reference_multimodal`.
        tokens: of the step.

    Returns:
        int64 (3, tokens).
    """
    if cuda.runs_on(segments.device, torch.float32):
        return cuda.ops().mrope_positions(segments, tokens)
    return reference_multimodal.mrope_positions(segments, tokens)


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
    if cuda.serves(hidden):
        cuda.ops().merge_embeddings(hidden, features, source, target, add)
    else:
        reference_multimodal.merge_embeddings(hidden, features, source, target, add)
