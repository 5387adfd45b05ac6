"""Every way in: one medium, told to the server in each form that the contract knows.

A way turns a request whose first medium is inline bytes into an equal one; README's table lists them by name.

Next: tests/e2e/test_ways_in.py
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessera.tensors import from_array, to_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Pair
from tests.parity.cases import frames_of, png
from tests.parity.oracle import patchify

FRAMES_FPS = 2.0


@dataclass(frozen=True)
class Scene:
    """What a way may use.

    Attributes:
        pair: the servers; they may fetch from `url_of` and open files under `root`.
        model: the checkpoint that they serve.
        modality: of the medium.
        file: the medium's bytes; `mime` their type.
        mime: see `file`.
        url_of: serves bytes and returns their address.
        root: of the allowed paths.
        patches: how pixels become patches; see `patchify`.
    """

    pair: Pair
    model: Path
    modality: str
    file: bytes
    mime: str
    url_of: Callable[[bytes], str]
    root: Path
    patches: dict[str, Any]

    @property
    def stub(self) -> Any:
        """The gateway."""
        return self.pair.stub


Way = Callable[[Scene, pb.ChatRequest], Any]
"""Takes the scene and the request with inline bytes; returns the choice that the equal request gives."""


def media_of(request: pb.ChatRequest) -> pb.MediaSource:
    """The source of a request's first medium."""
    part = next(part for part in request.messages[0].parts if part.WhichOneof("part") != "text")
    return getattr(part, part.WhichOneof("part")).media


def _ask(scene: Scene, request: pb.ChatRequest, **source: Any) -> Any:
    media = media_of(request)
    media.Clear()
    media.MergeFrom(pb.MediaSource(**source))
    return scene.stub.Chat(request).choices[0]


def data_url(scene: Scene, request: pb.ChatRequest) -> Any:
    """The bytes in base64."""
    return _ask(scene, request, url=f"data:{scene.mime};base64,{base64.b64encode(scene.file).decode()}")


def uploaded_id(scene: Scene, request: pb.ChatRequest) -> Any:
    """The bytes uploaded before."""
    header = pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=len(scene.file)))
    answer = scene.stub.UploadMedia(iter([header, pb.UploadMediaRequest(chunk=scene.file)]))
    return _ask(scene, request, media_id=answer.media_id)


def url(scene: Scene, request: pb.ChatRequest) -> Any:
    """The address of a web server."""
    return _ask(scene, request, url=scene.url_of(scene.file))


def path(scene: Scene, request: pb.ChatRequest) -> Any:
    """A file under the allowed root."""
    (scene.root / "medium").write_bytes(scene.file)
    return _ask(scene, request, path="medium")


def _prepare(scene: Scene, request: pb.ChatRequest) -> pb.PrepareResponse:
    return scene.stub.Prepare(pb.PrepareRequest(chat=request, include_tensors=True))


def _ask_item(scene: Scene, request: pb.ChatRequest, item: types.MultimodalItem) -> Any:
    part = next(part for part in request.messages[0].parts if part.WhichOneof("part") != "text")
    item.ClearField("ranges")
    part.item.CopyFrom(item)
    return scene.stub.Chat(request).choices[0]


def item_tensor(scene: Scene, request: pb.ChatRequest) -> Any:
    """The item's own tensor, pixels or samples, in a conversation."""
    return _ask_item(scene, request, _prepare(scene, request).items[0])


def item_hash(scene: Scene, request: pb.ChatRequest) -> Any:
    """The name of an item that the server holds."""
    prepared = _prepare(scene, request)
    item = types.MultimodalItem(modality=prepared.items[0].modality, content_hash=prepared.content_hashes[0])
    return _ask_item(scene, request, item)


def patches(scene: Scene, request: pb.ChatRequest) -> Any:
    """Float patches, as a caller's own Hugging Face processor makes them."""
    item = _prepare(scene, request).items[0]
    item.tensor.CopyFrom(from_array(patchify(to_array(item.tensor), **scene.patches)))
    item.payload_kind = types.PAYLOAD_KIND_PATCHES
    return _ask_item(scene, request, item)


def embeddings(scene: Scene, request: pb.ChatRequest) -> Any:
    """What the encoder, loaded and run by itself, returns; beside a computed item of the same modality."""
    import torch

    from worker.models.base import EncoderInput
    from worker.models.loader import load_encoders

    item = _prepare(scene, request).items[0]
    kind = "samples" if scene.modality == "time_series" else "pixels_u8"
    grid = (item.grid_thw.t, item.grid_thw.h, item.grid_thw.w) if item.HasField("grid_thw") else None
    encoder = next(e for e in load_encoders(scene.model) if scene.modality in e.modalities)
    tensor = torch.from_numpy(np.array(to_array(item.tensor)))
    [output] = encoder([EncoderInput(scene.modality, kind, tensor, grid, sampling_rate_hz=item.sampling_rate_hz)])
    item.tensor.CopyFrom(from_array(output.embeddings.numpy()))
    item.payload_kind = types.PAYLOAD_KIND_EMBEDDINGS
    if output.deepstack is not None:
        item.side_tensors["deepstack"].CopyFrom(from_array(output.deepstack.numpy()))
    return _ask_item(scene, request, item)


def ids_with_one_placeholder(scene: Scene, request: pb.ChatRequest) -> Any:
    """The prompt as ids before expansion: one placeholder for each item."""
    from gateway.processor.registry import load_processor

    prepared = _prepare(scene, request)
    processor = load_processor(scene.model)
    short: list[int] = []
    for piece in processor.tokenizer.split_special(prepared.rendered_prompt):
        short += [piece] if isinstance(piece, int) else processor.tokenizer.encode(piece, allow_special=False)
    items = list(prepared.items)
    for item in items:
        item.ClearField("ranges")
    generate = pb.GenerateRequest(token_ids={"ids": short}, items=items, sampling=request.sampling)
    response = scene.stub.Generate(generate)
    if list(response.prompt.token_ids) == list(prepared.token_ids):
        return response.choices[0]
    # Ids are taken as they are. Where a layout leaves no marker between a caller's text and a clip's first time, as
    # InternS1-Pro's, text would have been merged across that border: the same characters, another split.
    decode = processor.tokenizer.decode
    assert scene.modality == "video"
    assert decode(response.prompt.token_ids) == decode(prepared.token_ids)
    assert len(response.choices[0].token_ids) == len(scene.stub.Chat(request).choices[0].token_ids)
    return ids_expanded(scene, request)


def ids_expanded(scene: Scene, request: pb.ChatRequest) -> Any:
    """The final ids, and items with their ranges."""
    prepared = _prepare(scene, request)
    return _generate(scene, request, prepared.token_ids, prepared.items, prepared.token_ids)


def _generate(scene: Scene, request: pb.ChatRequest, ids: Any, items: Any, expected: Any) -> Any:
    generate = pb.GenerateRequest(token_ids={"ids": ids}, items=items, sampling=request.sampling)
    response = scene.stub.Generate(generate)
    assert list(response.prompt.token_ids) == list(expected)
    return response.choices[0]


# ---- clips of separate frames: they are not the file, so they are compared with each other


def frame_files(suffix: str) -> list[bytes]:
    """Six encoded frames of a clip."""
    frames = frames_of(13, 6, 80, 100)
    if suffix == "png":
        return [png(frame) for frame in frames]
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def frames_with_fps(scene: Scene, request: pb.ChatRequest, suffix: str = "png") -> Any:
    """A list of frames with its rate."""
    frames = [pb.MediaSource(data=file) for file in frame_files(suffix)]
    return _ask(scene, request, frames=pb.FrameList(frames=frames, source_fps=FRAMES_FPS))


def frames_with_times(scene: Scene, request: pb.ChatRequest) -> Any:
    """A list of frames with their times."""
    frames = [pb.MediaSource(data=file) for file in frame_files("png")]
    times = [index / FRAMES_FPS for index in range(len(frames))]
    return _ask(scene, request, frames=pb.FrameList(frames=frames, timestamps=times))


def data_video_jpeg(scene: Scene, request: pb.ChatRequest) -> Any:
    """Frames in one data URL, two a second."""
    joined = ",".join(base64.b64encode(file).decode() for file in frame_files("jpeg"))
    return _ask(scene, request, url=f"data:video/jpeg;base64,{joined}")


def frames_with_fps_jpeg(scene: Scene, request: pb.ChatRequest) -> Any:
    """A list of JPEG frames with its rate."""
    return frames_with_fps(scene, request, "jpeg")


FILE_WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        data_url, uploaded_id, url, path, item_tensor, item_hash, embeddings, ids_with_one_placeholder, ids_expanded,
    )
}  # fmt: skip
VISUAL_WAYS: dict[str, Way] = FILE_WAYS | {"patches": patches}
FRAME_WAYS: dict[str, tuple[Way, Way]] = {
    "frames_with_times": (frames_with_times, frames_with_fps),
    "data_video_jpeg": (data_video_jpeg, frames_with_fps_jpeg),
}
