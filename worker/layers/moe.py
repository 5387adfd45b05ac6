"""Mixture of experts: how a token chooses its experts, and the layer that sends it there.

A *route* is a function of the router's logits, (n, num_experts) in the router's type, that returns the experts of each
token, (n, k), and their weights, fp32 (n, k). Of equal scores the lower index wins.

Next: worker/layers/experts.py
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tessera_kernels import ops
from worker.layers.experts import load_experts
from worker.layers.linear import Linear
from worker.layers.mlp import SwiGluMlp
from worker.layers.source import WeightSource

Chosen = tuple[torch.Tensor, torch.Tensor]
"""Experts, int64 or int32 (n, k) as the kernels here take them, and their weights, fp32 (n, k)."""

Route = Callable[[torch.Tensor], Chosen]
"""Router logits, (n, num_experts), to what was chosen."""


def softmax_topk(logits: torch.Tensor, k: int) -> Chosen:
    """Choose the k most probable experts; their probabilities are scaled to sum to 1.

    Source: Qwen3-VL-MoE and Qwen3.5-MoE, which scale whatever `norm_topk_prob` says.

    Args:
        logits: (n, num_experts).
        k: experts of a token.
    """
    return ops.choose_experts(logits, k)


def grouped_softmax_topk(logits: torch.Tensor, k: int, num_groups: int) -> Chosen:
    """Choose the k / num_groups most probable experts inside each group; their probabilities are scaled to sum to 1.

    Source: InternS1-Pro's `router_n_groups`. Experts come group by group, the most probable of a group first.

    Args:
        logits: (n, num_experts).
        k: experts of a token, a multiple of num_groups.
        num_groups: runs of equal length that the experts are divided into.
    """
    return ops.choose_experts(logits, k, num_groups=num_groups, within_groups=True)


def sigmoid_group_topk(
    logits: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    *,
    num_groups: int = 1,
    top_groups: int = 1,
    normalise: bool = True,
    scale: float = 1.0,
) -> Chosen:
    """Choose by sigmoid plus bias among the best groups; weigh by the sigmoid alone.

    Source: GLM-4.5V. A group counts as much as its two best experts together, bias included.

    Args:
        logits: (n, num_experts).
        bias: fp32 (num_experts,), `e_score_correction_bias`.
        k: experts of a token.
        num_groups: runs of equal length that the experts are divided into, `n_group`.
        top_groups: groups that a token may choose from, `topk_group`.
        normalise: whether the weights are scaled to sum to 1 before `scale`, `norm_topk_prob`.
        scale: of all weights, `routed_scaling_factor`.
    """
    return ops.choose_experts(
        logits, k, scoring="sigmoid", bias=bias, num_groups=num_groups, top_groups=top_groups,
        normalise=normalise, scale=scale,
    )  # fmt: skip


@dataclass(frozen=True)
class MoeShape:
    """Sizes of a mixture-of-experts layer.

    Args:
        hidden_size: width of the stream.
        inner_size: width inside an expert, `moe_intermediate_size`.
        num_experts: routed experts.
        shared_inner_size: width inside the shared expert, 0 where there is none.
        shared_name: prefix of the shared expert's weights.
        shared_gated: whether it is weighed by sigmoid(`{shared_name}_gate` x).
        router_fp32: whether the router's product is taken in fp32 whatever the model's type.
    """

    hidden_size: int
    inner_size: int
    num_experts: int
    shared_inner_size: int = 0
    shared_name: str = "shared_expert"
    shared_gated: bool = False
    router_fp32: bool = False

    def workspace(self, k: int) -> int:
        """Return the floats that the layer needs for a token with k experts, beside its input and output."""
        routed = 2 * self.num_experts + k * (2 * self.hidden_size + 3 * self.inner_size)
        shared = self.hidden_size if self.shared_inner_size else 0
        return shared + max(routed, 3 * self.shared_inner_size)


class MoeMlp:
    """The feed-forward layer of routed experts, and a shared one that all tokens pass.

    Args:
        router: (n, hidden) to logits (n, num_experts).
        route: what chooses by them.
        experts: weights of the routed experts.
        shared: the shared expert, or None.
        shared_gate: (n, hidden) to (n, 1), or None where the shared expert counts in full.
    """

    def __init__(
        self,
        router: Linear,
        route: Route,
        experts: ops.ExpertWeights,
        shared: SwiGluMlp | None = None,
        shared_gate: Linear | None = None,
    ) -> None:
        self.router = router
        self.route = route
        self.experts = experts
        self.shared = shared
        self.shared_gate = shared_gate

    @classmethod
    def load(cls, source: WeightSource, shape: MoeShape, route: Route) -> "MoeMlp":
        """Read `gate`, `experts` in whatever layout, and the shared expert.

        Args:
            source: the layer's `mlp`.
            shape: sizes.
            route: chooses by the logits.
        """
        dtype = torch.float32 if shape.router_fp32 else source.dtype
        weight = ops.linear.create(shape.num_experts, shape.hidden_size, dtype, source.device)
        weight.write_rows(0, source.under("gate").mapped("weight", (shape.num_experts, shape.hidden_size)))
        weight.seal()
        experts = load_experts(source.under("experts"), shape.num_experts, shape.hidden_size, shape.inner_size)
        shared = gate = None
        if shape.shared_inner_size:
            shared = SwiGluMlp.load(source.under(shape.shared_name), shape.hidden_size, shape.shared_inner_size)
            if shape.shared_gated:
                gate = Linear.load(source, [(f"{shape.shared_name}_gate", 1)], shape.hidden_size)
        return cls(Linear(weight), route, experts, shared, gate)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (n, hidden) -> (n, hidden)."""
        experts, weights = self.route(self.router(x.to(self.router.weight.dtype)))
        shared = None if self.shared is None else self.shared(x)
        gate = None if self.shared_gate is None else self.shared_gate(x)
        return self.experts.apply(x, experts, weights, shared, gate)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights."""
        parts = (self.router, self.experts, self.shared, self.shared_gate)
        return sum(part.size_bytes for part in parts if part is not None)
