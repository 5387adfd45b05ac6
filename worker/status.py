"""What the worker says of itself: its state, and the answer to Describe.

Next: worker/service.py
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tessera import __version__
from tessera.checkpoint import fingerprint
from tessera.items import ItemGeometry
from tessera.modality import Modality
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from worker.answers import load_of
from worker.engine.output import LoadReport

if TYPE_CHECKING:
    from worker.engine.engine import Engine
    from worker.models.base import GenerationDefaults, ModelInfo

STATES = {
    "downloading": pb.WORKER_STATE_DOWNLOADING,
    "loading": pb.WORKER_STATE_LOADING,
    "warming": pb.WORKER_STATE_WARMING,
    "ready": pb.WORKER_STATE_READY,
    "draining": pb.WORKER_STATE_DRAINING,
    "failed": pb.WORKER_STATE_FAILED,
}
SPECIAL_TOKENS = {
    "image": "image_token_id",
    "video": "video_token_id",
    "time_series": "time_series_token_id",
    "vision_start": "vision_start_token_id",
    "vision_end": "vision_end_token_id",
    "bos": "bos_token_id",
    "pad": "pad_token_id",
}


class WorkerStatus:
    """State and progress; set by the engine's thread while it starts, read by the asyncio thread."""

    def __init__(self) -> None:
        self.state = "loading"
        self.progress = 0.0

    def report(self, state: str, progress: float) -> None:
        """Set both."""
        assert state in STATES
        self.state, self.progress = state, progress

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.state == "ready"

    def describe(self, static: pb.DescribeResponse | None, load: LoadReport | None) -> pb.DescribeResponse:
        """Return the answer to Describe: what is known by now.

        Args:
            static: what does not change once the model is loaded.
            load: the last step's.
        """
        answer = pb.DescribeResponse(version=__version__)
        if static is not None:
            answer.CopyFrom(static)
        answer.state, answer.progress = STATES[self.state], self.progress
        if load is not None:
            answer.load.CopyFrom(load_of(load))
        return answer


def describe_engine(engine: "Engine", model_dir: Path) -> pb.DescribeResponse:
    """Return all of Describe that does not change once the engine stands; reads the checkpoint's small files."""
    from tessera_kernels import ops

    model, info, config = engine.model, engine.model.info, engine.config
    special = {role: getattr(info, name) for role, name in SPECIAL_TOKENS.items()}
    chosen = ops.implementations(model.dtype, model.device, model.head_dims)
    return pb.DescribeResponse(
        version=__version__,
        architecture=info.architecture,
        fingerprint=fingerprint(model_dir),
        modalities=[Modality(name).to_proto() for name in info.modalities],
        vision_disabled=info.vision_disabled,
        max_model_len=config.max_model_len,
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        num_deepstack_layers=info.num_deepstack_layers,
        special_token_ids={role: token for role, token in special.items() if token is not None},
        eos_token_ids=info.eos_token_ids,
        default_sampling=default_sampling(info.generation),
        block_size=config.block_size,
        total_blocks=config.num_blocks,
        max_sequences=config.max_sequences,
        max_batched_tokens=config.max_batched_tokens,
        max_item_tokens=config.max_item_tokens if info.modalities else 0,
        device=str(model.device),
        dtype=info.dtype,
        ops={op: choice.implementation for op, choice in chosen.items()},
        op_reasons={op: choice.reason for op, choice in chosen.items()},
        weight_bytes=model.weight_bytes,
    )


def geometry_of(info: "ModelInfo") -> ItemGeometry:
    """Return what items are checked against."""
    return ItemGeometry(
        patch_size=info.patch_size,
        merge_size=info.spatial_merge_size,
        temporal_patch_size=info.temporal_patch_size,
        hidden_size=info.hidden_size,
        num_deepstack_layers=info.num_deepstack_layers,
        time_series=Modality.TIME_SERIES in info.modalities,
    )


def default_sampling(defaults: "GenerationDefaults") -> types.SamplingParams:
    """Return generation_config's sampling; greedy where it does not sample."""
    return types.SamplingParams(
        temperature=defaults.temperature if defaults.do_sample else 0.0,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
        repetition_penalty=defaults.repetition_penalty,
    )
