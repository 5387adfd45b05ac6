"""From what a user has (path, URL, bytes, PIL image, ndarray, frames) to a MediaSource.

Pillow and numpy are used only where a picture has to be encoded.

Next: messages.py.
"""

from __future__ import annotations

import base64
import binascii
import io
import mimetypes
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlparse

from tessera.v1 import inference_service_pb2 as pb
from tessera_client.errors import InvalidArgument
from tessera_client.parts import Clip, MediaId, ServerPath, Video
from tessera_client.results import UploadResult
from tessera_client.uploads import Bag, Blob

JPEG_LIST = "data:video/jpeg"
JPEG_LIST_FPS = 2.0
FRAME_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def write_source(media: pb.MediaSource, source: Any, bag: Bag, field: str) -> None:
    """Write one picture, or one file of any kind, into `media`.

    Args:
        media: a part of the request that is being written.
        source: see parts.Source.
        bag: takes bytes, which go inline or ahead of the request.
        field: path of `media` in the request, for errors.

    Raises:
        InvalidArgument: the source cannot be used.
        OSError: its file cannot be read.
    """
    match source:
        case pb.MediaSource():
            media.CopyFrom(source)
        case MediaId():
            media.media_id = _digest(source, field)
        case UploadResult(media_id=bytes() as digest):
            media.media_id = digest
        case ServerPath():
            media.path = os.fspath(source.path)
        case str() if source.startswith(("http://", "https://")):
            media.url = source
        case str() if source.startswith("data:"):
            _write_data_url(media, source, bag, field)
        case str() | os.PathLike():
            bag.add_media(media, _file(source))
        case bytes() | bytearray() | memoryview():
            bag.add_media(media, Blob("media", bytes(source)))
        case _:
            bag.add_media(media, _object(source, field))


def write_video(media: pb.MediaSource, video: Video, bag: Bag, field: str) -> None:
    """Write a clip: a file like any other, or a list of frames with its rate or times.

    Raises:
        InvalidArgument: the source cannot be used.
        OSError: a file cannot be read.
    """
    frames, video = _frames_and_times(video, bag, field)
    if frames is None:
        if video.source_fps is not None or video.timestamps is not None:
            raise _invalid("source_fps and timestamps belong to a list of frames, not to a file.", field)
        write_source(media, video.source, bag, field)
        return
    if not len(frames):
        raise _invalid("A list of frames has at least one.", f"{field}.frames")
    # Submessages exist from here on, also where neither option is given.
    target = media.frames
    for index, frame in enumerate(frames):
        write_source(target.frames.add(), frame, bag, f"{field}.frames.frames[{index}]")
    if video.source_fps is not None:
        target.source_fps = video.source_fps
    target.timestamps.extend(video.timestamps if video.timestamps is not None else ())


def encode_picture(picture: Any) -> bytes:
    """Return the PNG of a PIL image (turned as its EXIF says) or of a uint8 array.

    Args:
        picture: PIL image, or ndarray (height, width), (height, width, 3) or (height, width, 4) of uint8.

    Raises:
        ValueError: the array is no picture.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("Pillow is needed to encode pictures: pip install 'tessera[client]'") from error
    if is_array(picture):
        grey = picture.ndim == 2
        if picture.dtype.name != "uint8" or not (grey or (picture.ndim == 3 and picture.shape[2] in (3, 4))):
            raise ValueError(
                "a picture is a uint8 array (height, width), (height, width, 3) or (height, width, 4), "
                f"not {picture.dtype} {tuple(picture.shape)}"
            )
        picture = Image.fromarray(picture)
    else:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _object(source: Any, field: str) -> Blob:
    """Return the blob of a PIL image, an array or an open file."""
    try:
        if is_array(source) or is_pil(source):
            return Blob("picture.png", encode_picture(source), mime_type="image/png")
    except ValueError as error:
        raise _invalid(f"{str(error).capitalize()}.", field) from None
    if hasattr(source, "read"):
        data = source.read()
        if isinstance(data, bytes):
            return Blob(Path(str(getattr(source, "name", "media"))).name, data)
    raise _invalid(
        f"Cannot use {type(source).__name__} as media: give a path, URL, bytes, binary file, PIL image, ndarray, "
        "MediaId or ServerPath.",
        field,
    )


def _file(source: str | os.PathLike[str]) -> Blob:
    text = os.fspath(source)
    path = Path(unquote(urlparse(text).path) if text.startswith("file://") else text).expanduser()
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, not a file", str(path))
    blob = Blob(path.name, path=path, mime_type=mimetypes.guess_type(path.name)[0] or "")
    if not blob.size_bytes:
        raise OSError(22, "is empty", str(path))
    with path.open("rb"):  # an unreadable file is told now, not in the middle of an upload
        return blob


def _write_data_url(media: pb.MediaSource, url: str, bag: Bag, field: str) -> None:
    """Small ones and lists of frames go as they are, large ones as bytes."""
    head, _, body = url.partition(",")
    if len(body) <= bag.upload_above_bytes or head.startswith(JPEG_LIST):
        media.url = url
        return
    try:
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except binascii.Error:
        raise _invalid("The data URL is not valid base64.", f"{field}.url") from None
    mime_type = head.removeprefix("data:").partition(";")[0]
    bag.add_media(media, Blob("media", data, mime_type=mime_type))


def _frames_and_times(video: Video, bag: Bag, field: str) -> tuple[Sequence[Any] | None, Video]:
    """Return a clip's frames (None = it is a file), and the clip with the rate or times that its source brings."""
    source = video.source
    is_timed = video.source_fps is not None or video.timestamps is not None
    if isinstance(source, Clip):
        return source.frames, video if is_timed else replace(video, timestamps=source.timestamps or None)
    if not isinstance(source, str) or not source.startswith(JPEG_LIST):
        return frames_of(source), video
    if not is_timed and len(source) <= bag.upload_above_bytes:
        return None, video
    try:
        frames, rate = split_jpeg_list(source)
    except InvalidArgument as error:
        raise _invalid(error.message, f"{field}.url") from None
    return frames, video if is_timed else replace(video, source_fps=rate or JPEG_LIST_FPS)


def split_jpeg_list(url: str) -> tuple[list[bytes], float | None]:
    """Return the files of `data:video/jpeg;base64,a,b,c`, and the rate where it says one (`;fps=8`).

    Raises:
        InvalidArgument: it is malformed.
    """
    head, _, body = url.partition(",")
    rate = next((part.removeprefix("fps=") for part in head.split(";") if part.startswith("fps=")), None)
    try:
        return [base64.b64decode(piece, validate=True) for piece in body.split(",")], float(rate) if rate else None
    except (binascii.Error, ValueError):
        message = "A list of frames is data:video/jpeg;base64,A,B,C; this one is malformed."
        raise _invalid(message, None) from None


def frames_of(source: Any) -> Sequence[Any] | None:
    """Return the frames of a list, a four-dimensional array or a folder; None for anything else."""
    if isinstance(source, list | tuple) or (is_array(source) and source.ndim == 4):
        return source
    if isinstance(source, str | os.PathLike) and not str(source).startswith(("data:", "http:", "https:")):
        folder = Path(source).expanduser()
        if folder.is_dir():
            return sorted((p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES), key=_natural)
    return None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which frame2 stands before frame10."""
    return [(int(run), "") if run.isdigit() else (0, run) for run in re.split(r"(\d+)", path.name)]


def is_array(value: Any) -> bool:
    """Return whether it is a numpy array."""
    # Where numpy was never imported, nothing can be an array of it.
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_pil(value: Any) -> bool:
    """Return whether it is a PIL image."""
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _digest(media_id: MediaId, field: str) -> bytes:
    try:
        return media_id.digest()
    except ValueError as error:
        raise _invalid(f"Not a media id: {error}.", f"{field}.media_id") from None


def _invalid(message: str, field: str | None) -> InvalidArgument:
    return InvalidArgument(message, reason="MEDIA_SOURCE", field=field)
