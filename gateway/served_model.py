"""The model that this gateway serves, as its workers describe it.

Next: pipeline.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.media.series.formats import series_formats
from gateway.processor.multimodal import MultimodalProcessor
from gateway.worker_link import WorkerLink
from tessera import __version__
from tessera.errors import FailedPrecondition, NotFound, Unavailable
from tessera.modality import VISUAL, Modality
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as worker_pb

STATES = {
    worker_pb.WORKER_STATE_DOWNLOADING: pb.MODEL_STATE_DOWNLOADING,
    worker_pb.WORKER_STATE_LOADING: pb.MODEL_STATE_LOADING,
    worker_pb.WORKER_STATE_WARMING: pb.MODEL_STATE_WARMING,
    worker_pb.WORKER_STATE_READY: pb.MODEL_STATE_READY,
}
# The state of a model is that of its most advanced worker.
PROGRESS = (
    pb.MODEL_STATE_READY,
    pb.MODEL_STATE_WARMING,
    pb.MODEL_STATE_LOADING,
    pb.MODEL_STATE_DOWNLOADING,
    pb.MODEL_STATE_UNAVAILABLE,
)


def vision_disabled(field: str) -> FailedPrecondition:
    """Return the refusal of a picture or clip on a server without its vision encoder."""
    return FailedPrecondition(
        "The vision encoder is disabled on this server: it takes no images and no videos.",
        reason="VISION_DISABLED",
        field=field,
    )


@dataclass(frozen=True)
class ServedModel:
    """One model and its workers.

    Attributes:
        name: what clients ask for.
        fingerprint: of its files.
        processor: the gateway's half of the model.
        links: its workers.
        limits: of requests.
        resize_backend: "native" or "pillow".
        video_loaders: names, the one in use first.
    """

    name: str
    fingerprint: str
    processor: MultimodalProcessor
    links: Sequence[WorkerLink]
    limits: pb.RequestLimits
    resize_backend: str
    video_loaders: tuple[str, ...]

    def check_name(self, asked: str) -> None:
        """Raise NotFound where a request names another model."""
        if asked and asked != self.name:
            raise NotFound(
                f"Model {asked[:80]!r} is not served here; {self.name!r} is.", reason="MODEL_NOT_FOUND", field="model"
            )

    def description(self) -> worker_pb.DescribeResponse:
        """Return what the ready workers say of the model; they agree, their files being the same.

        Raises:
            Unavailable: no worker is ready.
        """
        for link in self.links:
            if link.ready and link.description is not None:
                return link.description
        raise Unavailable("No worker is ready to run the request.", reason="NO_WORKER")

    @property
    def max_model_len(self) -> int:
        """Tokens that fit every ready worker's context."""
        return min(link.description.max_model_len for link in self.links if link.ready and link.description)

    def check_media(self, media: Iterable[tuple[Modality, str]]) -> None:
        """Refuse pictures and clips where the workers have no vision encoder, before anything is fetched.

        Args:
            media: modality and path of each of the request's media.

        Raises:
            FailedPrecondition: VISION_DISABLED.
        """
        if self.description().vision_disabled:
            for modality, field in media:
                if modality in VISUAL:
                    raise vision_disabled(field)

    def check_placeholders(self, token_ids: Sequence[int] | None, text: str | None) -> None:
        """Refuse a raw prompt with placeholders that no encoder is there to fill.

        Args:
            token_ids: the prompt's, or None with `text`.
            text: the prompt, whose spelled-out special tokens are tokens.

        Raises:
            FailedPrecondition: VISION_DISABLED.
        """
        if not self.description().vision_disabled:
            return
        visual = self.processor.placeholders_of(VISUAL)
        if text is not None and not visual.isdisjoint(self.processor.tokenizer.split_special(text)):
            raise vision_disabled("text")
        for index, token in enumerate(token_ids or ()):
            if token in visual:
                raise vision_disabled(f"token_ids.ids[{index}]")

    def to_proto(self) -> pb.Model:
        """Return the model's public description, as far as it is known now."""
        states = [link_state(link) for link in self.links]
        best = min(range(len(states)), key=lambda i: PROGRESS.index(states[i][0]))
        model = pb.Model(
            name=self.name,
            architecture=self.processor.architecture,
            state=states[best][0],
            progress=states[best][1],
            modalities=[m.to_proto() for m in sorted(self.processor.modalities)],
            vocab_size=self.processor.vocab_size,
            limits=self.limits,
            default_media_options=default_options(self.processor),
            workers=[worker_status(link) for link in self.links],
            resize_backend=self.resize_backend,
            video_loaders=self.video_loaders,
            series_formats=series_formats() if Modality.TIME_SERIES in self.processor.modalities else (),
            fingerprint=self.fingerprint,
            server_version=__version__,
        )
        if any(link.ready for link in self.links):
            described = self.description()
            model.max_model_len = self.max_model_len
            model.default_sampling.CopyFrom(described.default_sampling)
            model.eos_token_ids.extend(described.eos_token_ids)
            if described.vision_disabled:
                kept = [modality for modality in self.processor.modalities if modality not in VISUAL]
                del model.modalities[:]
                model.modalities.extend(modality.to_proto() for modality in sorted(kept))
        return model


def default_options(processor: MultimodalProcessor) -> types.MediaOptions:
    """Return what holds for media where a request is silent; nothing for modalities that the model does not have."""
    options, rules = types.MediaOptions(), processor.rules
    if Modality.IMAGE in processor.modalities:
        options.image.min_pixels = rules.image_min_pixels
        options.image.max_pixels = rules.image_max_pixels
    if Modality.VIDEO in processor.modalities:
        options.video.min_frames = rules.min_frames
        options.video.max_frames = rules.max_frames
        options.video.min_pixels = rules.video_min_pixels
        options.video.max_pixels = rules.video_max_pixels
        if rules.fps is not None:
            options.video.fps = rules.fps
        options.video_layout = types.VIDEO_LAYOUT_V5
    if Modality.TIME_SERIES in processor.modalities:
        options.time_series.SetInParent()  # no default rate: the file's, else unknown
    return options


def link_state(link: WorkerLink) -> tuple[pb.ModelState, float]:
    """Return a worker's state and progress as the gateway sees it."""
    if link.ready:
        return pb.MODEL_STATE_READY, 1.0
    if link.description is None or not link.reachable:
        return pb.MODEL_STATE_UNAVAILABLE, 0.0
    state = STATES.get(link.description.state, pb.MODEL_STATE_UNAVAILABLE)
    if state == pb.MODEL_STATE_READY:
        # It says so, but its stream is not open: refused, or just lost.
        return pb.MODEL_STATE_UNAVAILABLE, 0.0
    return state, link.description.progress


def worker_status(link: WorkerLink) -> pb.WorkerStatus:
    """Return one worker's line of GetModel."""
    status = pb.WorkerStatus(
        address=link.address,
        state=link_state(link)[0],
        running=link.load.running,
        waiting=link.load.waiting,
        total_blocks=link.load.total_blocks,
        free_blocks=link.load.free_blocks,
        cached_blocks=link.load.cached_blocks,
        used_blocks=link.load.used_blocks,
        pinned_items=link.load.pinned_items,
        total_state_slots=link.load.total_state_slots,
        running_state_slots=link.load.running_state_slots,
        state_checkpoints=link.load.state_checkpoints,
    )
    if link.description is not None:
        status.weight_bytes = link.description.weight_bytes
        status.device = link.description.device
        status.dtype = link.description.dtype
        for op, implementation in link.description.ops.items():
            status.ops[op] = implementation
        for op, reason in link.description.op_reasons.items():
            status.op_reasons[op] = reason
    return status
