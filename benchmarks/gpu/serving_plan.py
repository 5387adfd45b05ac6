"""What `benchmarks.serving_gpu` runs: published shapes at serving sizes on a GPU, or everything tiny on the CPU.

Next: benchmarks/gpu/random_model.py
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.checkpoint import ModelSize


@dataclass(frozen=True)
class Model:
    """A shape.

    Args:
        name: in the table.
        size: of language model and vision tower.
        tied: whether head and embedding are one matrix.
    """

    name: str
    size: ModelSize
    tied: bool = True


# The sizes of the published checkpoints' config.json.
QWEN3_VL_2B = Model(
    "Qwen3-VL-2B",
    ModelSize(
        hidden=2048, layers=28, ffn=6144, heads=16, kv_heads=8, head_dim=128, vocab=151_936,
        vision_hidden=1024, vision_layers=24, vision_ffn=4096, vision_heads=16, deepstack=(5, 11, 17),
    ),
)  # fmt: skip
QWEN3_VL_8B = Model(
    "Qwen3-VL-8B",
    ModelSize(
        hidden=4096, layers=36, ffn=12_288, heads=32, kv_heads=8, head_dim=128, vocab=151_936,
        vision_hidden=1152, vision_layers=27, vision_ffn=4304, vision_heads=16, deepstack=(8, 16, 24),
    ),
    tied=False,
)  # fmt: skip
TINY_TIED, TINY_UNTIED = (
    Model(
        f"tiny, {'tied' if tied else 'untied'}",
        ModelSize(
            hidden=64, layers=2, ffn=96, heads=2, kv_heads=1, head_dim=32, vocab=1000,
            vision_hidden=64, vision_layers=2, vision_ffn=96, vision_heads=2, deepstack=(0,),
        ),
        tied,
    )
    for tied in (True, False)
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Args:
        device: of everything.
        dtype: of weights and KV cache.
        models: of the decode steps.
        batches: sequences of a step.
        context: tokens behind each; `max_model_len` is twice that.
        host_batch: sequences of the steps whose host share is asked for.
        host_steps: that are timed; a quarter of them is looked at by the profiler afterwards.
        served: model of the pair.
        rounds: of the pair and of transformers, by requests at once.
        new_tokens: that each request generates.
        worker: flags of the pair's worker beside those of the model; likewise the gateway's.
        gateway: see worker.
    """

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    models: tuple[Model, ...] = (QWEN3_VL_2B, QWEN3_VL_8B)
    batches: tuple[int, ...] = (1, 32)
    context: int = 512
    host_batch: int = 32
    host_steps: int = 120
    served: Model = QWEN3_VL_2B
    rounds: Mapping[int, int] = field(default_factory=lambda: {1: 8, 8: 3, 64: 2, 256: 2})
    new_tokens: int = 128
    # The largest number of requests runs at once, and a few prompts share a step; prompts and answers take 399 tokens.
    worker: Mapping[str, str | int] = field(
        default_factory=lambda: {
            "device": "cuda", "dtype": "bfloat16", "max_model_len": 1024, "max_sequences": 256,
            "max_batched_tokens": 8192, "log_level": "warning",
        }
    )  # fmt: skip
    gateway: Mapping[str, str | int] = field(
        default_factory=lambda: {"max_requests": 256, "pool_processes": 8, "log_level": "warning"}
    )


FULL = Plan()
TINY = Plan(
    device="cpu",
    dtype=torch.float32,
    models=(TINY_UNTIED,),
    batches=(1, 3),
    context=20,
    host_batch=3,
    host_steps=4,
    served=TINY_TIED,
    rounds={1: 1, 3: 1},
    new_tokens=3,
    worker={
        "device": "cpu", "dtype": "float32", "max_model_len": 512, "max_sequences": 3, "kv_cache_bytes": 4 << 20,
        "encoder_cache_bytes": 1 << 20, "log_level": "warning",
    },
    gateway={"max_requests": 3, "pool_processes": 1, "log_level": "warning"},
)  # fmt: skip
