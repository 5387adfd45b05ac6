"""Which experts a token is sent to, from its router's logits: every family's rule as one op.

Next: kernels/tessera_kernels/linear.py
"""

from typing import Literal

import torch

from tessera_kernels import cuda, invariance

_TINY = 1e-20  # keeps a sum of weights that all vanish from dividing by zero


def choose_experts(
    logits: torch.Tensor,
    k: int,
    *,
    scoring: Literal["softmax", "sigmoid"] = "softmax",
    bias: torch.Tensor | None = None,
    num_groups: int = 1,
    top_groups: int | None = None,
    within_groups: bool = False,
    normalise: bool = True,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k experts of the highest scores, highest first, and their weights; of equal scores the lower index.

    Args:
        logits: (n, num_experts), at most 512 experts on CUDA; scores are fp32.
        k: experts of a token, at most 32 on CUDA.
        scoring: "softmax" over all experts, or "sigmoid".
        bias: fp32 (num_experts,), added to the scores for the choice, not for the weights.
        num_groups: runs of equal length that the experts are divided into, at most 32 on CUDA.
        top_groups: groups that a token may choose from, those whose two best scores, bias included, have the highest
            sums; None: all.
        within_groups: instead, choose k / num_groups in each group, one group after the other.
        normalise: whether the weights are scaled to sum to 1 before `scale`.
        scale: of all weights.

    Returns:
        Experts, (n, k), int32 on CUDA and else int64, and their weights, fp32 (n, k).
    """
    allowed = num_groups if top_groups is None else top_groups
    if cuda.serves(logits):
        chosen, weights = cuda.ops().choose_experts(
            logits, bias, k, scoring == "sigmoid", num_groups, allowed, within_groups, normalise, scale
        )
        return chosen, weights
    logits = logits.float()
    scores = logits.softmax(-1) if scoring == "softmax" else invariance.elementwise(torch.sigmoid, logits)
    choice = scores if bias is None else scores + bias
    if within_groups:
        experts = _best_within_groups(choice, k, num_groups)
    else:
        experts = _top(_bar_groups(choice, num_groups, allowed), k)
    weights = scores.gather(1, experts)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + _TINY)
    return experts, weights * scale


def _best_within_groups(choice: torch.Tensor, k: int, num_groups: int) -> torch.Tensor:
    num_tokens, num_experts = choice.shape
    size = num_experts // num_groups
    inside = _top(choice.view(num_tokens, num_groups, size), k // num_groups)
    return (inside + torch.arange(0, num_experts, size, device=choice.device)[:, None]).flatten(1)


def _bar_groups(choice: torch.Tensor, num_groups: int, top_groups: int) -> torch.Tensor:
    if top_groups == num_groups:
        return choice
    groups = choice.unflatten(1, (num_groups, choice.shape[1] // num_groups))
    best = _top(groups.topk(2, dim=-1).values.sum(-1), top_groups)
    barred = torch.ones(groups.shape[:2], dtype=torch.bool, device=choice.device).scatter_(1, best, False)
    return groups.masked_fill(barred[..., None], float("-inf")).flatten(1)


def _top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """Return the indices of the k largest along the last axis, largest first; of equal ones the lower index."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
