# ruff: noqa: E501 - the tables have one row a line
"""Every malformed conversation gets its status, its reason and the path of its field; the servers do not care.

The base is a good request with a text, a picture and a clip; each row changes one thing.
The file is long for its table.
"""

import base64
import io
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.status import Well, assert_says_nothing_of_the_inside, outcome
from tests.parity.cases import CLIP, SMALL, Case, Turn, chat_request, clip, frame_list, png, user

NAN, INF = float("nan"), float("inf")
TEXT, IMAGE, VIDEO = "messages[1].parts[0]", "messages[1].parts[1].image", "messages[1].parts[2].video"
BASE = Case("base", (Turn("system", ("You are a helpful assistant.",)), user("What is this? ", SMALL, CLIP)))
INVALID = "INVALID_ARGUMENT"
Edit = Callable[[pb.ChatRequest], Any]


@pytest.fixture(scope="module")
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair on the tiny checkpoint."""
    return pairs.get(Flags(tiny("5.x")))


@pytest.fixture(scope="module")
def well(pair: Pair) -> Well:
    """How the pair looked before any bad request."""
    return Well.look(pair)


@pytest.fixture(autouse=True)
def unharmed(pair: Pair, well: Well, pairs: Pairs) -> Iterator[None]:
    """After each bad request: the same processes, SERVING, and a canary yields its tokens."""
    pairs.get(pair.flags)
    yield
    assert Well.look(pair) == well


def sampling(**fields: Any) -> Edit:
    """An edit of the sampling parameters."""

    def edit(request: pb.ChatRequest) -> None:
        for name, value in fields.items():
            target = getattr(request.sampling, name)
            if isinstance(value, list):
                target.extend(value)
            elif isinstance(value, dict):
                for key, number in value.items():
                    target[key] = number
            else:
                setattr(request.sampling, name, value)

    return edit


def image(**fields: Any) -> Edit:
    """An edit of the picture's source."""
    return lambda request: _set(request.messages[1].parts[1].image.media, fields)


def image_options(**fields: Any) -> Edit:
    """An edit of the picture's options."""
    return lambda request: _set(request.messages[1].parts[1].image.options, fields)


def video(**fields: Any) -> Edit:
    """An edit of the clip's source."""
    return lambda request: _set(request.messages[1].parts[2].video.media, fields)


def video_options(**fields: Any) -> Edit:
    """An edit of the clip's options."""
    return lambda request: _set(request.messages[1].parts[2].video.options, fields)


def frames(count: int = 3, *, options: dict[str, Any] | None = None, **fields: Any) -> Edit:
    """An edit that makes the clip a list of frames."""

    def edit(request: pb.ChatRequest) -> None:
        part = request.messages[1].parts[2].video
        listed = pb.FrameList(frames=[pb.MediaSource(data=file) for file in frame_list(3, 3, 40, 40).frames[:count]])
        _set(listed, fields)
        part.media.frames.CopyFrom(listed)
        _set(part.options, options or {})

    return edit


def part(message: int, index: int, new: pb.Part) -> Edit:
    """An edit that puts another part at a place."""

    def edit(request: pb.ChatRequest) -> None:
        parts = request.messages[message].parts
        if index == len(parts):
            parts.add()
        parts[index].CopyFrom(new)

    return edit


def _set(message: Any, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif hasattr(value, "SerializeToString"):
            getattr(message, name).CopyFrom(value)
        else:
            setattr(message, name, value)


# ---- files that are not what they say


def jpeg() -> bytes:
    """A good JPEG file."""
    file = io.BytesIO()
    Image.open(io.BytesIO(SMALL.file)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def png_bomb(side: int = 30_000) -> bytes:
    """A PNG of a few kilobytes that claims side * side pixels, and has them."""
    chunk = lambda kind, data: (  # noqa: E731 - three calls
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    packed = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """A small GIF of many large frames."""
    file = io.BytesIO()
    shades = [Image.new("P", (2000, 2000), color) for color in range(24)]
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:])
    return file.getvalue()


def lying_png() -> bytes:
    """A PNG whose header claims other sizes than its data has."""
    good = bytearray(SMALL.file)
    good[16:20] = (5000).to_bytes(4, "big")
    good[29:33] = zlib.crc32(bytes(good[12:29])).to_bytes(4, "big")
    return bytes(good)


def media(file: bytes) -> pb.MediaSource:
    """A source of inline bytes."""
    return pb.MediaSource(data=file)


AUDIO = pb.Part(audio=pb.AudioPart(media=media(b"RIFF")))
SERIES = pb.Part(time_series=pb.TimeSeriesPart(media=media(b"1,2")))
PICTURE = pb.Part(image=pb.ImagePart(media=media(SMALL.file)))
NESTED = pb.MediaSource(frames=pb.FrameList(frames=[media(SMALL.file)]))
UNEVEN = pb.FrameList(frames=[media(png(np.zeros((40, 40, 3), np.uint8))), media(png(np.zeros((50, 40, 3), np.uint8)))])
WIDE_FILE = png(np.zeros((4, 1000, 3), np.uint8))
HASHED = types.MultimodalItem(modality=types.MODALITY_IMAGE, content_hash=b"x" * 32)
PARAMS = "SAMPLING_PARAMS_INVALID"

ROWS: list[tuple[str, Edit, str, str, str]] = [
    # the request itself
    ("unknown_model", lambda r: setattr(r, "model", "gpt-9"), "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
    ("no_messages", lambda r: r.ClearField("messages"), INVALID, "FIELD_REQUIRED", "messages"),
    ("no_role", lambda r: r.messages[1].ClearField("role"), INVALID, "FIELD_REQUIRED", "messages[1].role"),
    ("unknown_role", lambda r: setattr(r.messages[1], "role", 77), INVALID, "FIELD_REQUIRED", "messages[1].role"),
    ("empty_part", part(1, 0, pb.Part()), INVALID, "FIELD_REQUIRED", f"{TEXT}.text"),
    ("long_salt", lambda r: setattr(r, "cache_salt", bytes(257)), INVALID, "SALT_SIZE", "cache_salt"),
    (
        "too_long",
        lambda r: setattr(r.messages[1].parts[0], "text", "what is this? " * 4000),
        INVALID,
        "PROMPT_TOO_LONG",
        "messages",
    ),
    (
        "too_many_media",
        lambda r: r.messages[1].parts.extend([PICTURE] * 65),
        INVALID,
        "TOO_MANY_ITEMS",
        "messages",
    ),
    (
        "reserved_template_argument",
        lambda r: r.template_args.update({"messages": []}),
        INVALID,
        "TEMPLATE_ARGUMENT_RESERVED",
        "template_args.messages",
    ),
    # roles and modalities
    ("system_with_image", part(0, 1, PICTURE), INVALID, "MEDIA_ROLE", "messages[0].parts[1].image"),
    (
        "assistant_with_image",
        lambda r: setattr(r.messages[1], "role", pb.ROLE_ASSISTANT),
        INVALID,
        "MEDIA_ROLE",
        IMAGE,
    ),
    ("audio", part(1, 0, AUDIO), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", f"{TEXT}.audio"),
    ("time_series", part(1, 0, SERIES), "UNIMPLEMENTED", "MODALITY_UNSUPPORTED", f"{TEXT}.time_series"),
    # sources
    ("no_source", lambda r: r.messages[1].parts[1].image.media.Clear(), INVALID, "FIELD_REQUIRED", f"{IMAGE}.media.data"),
    ("empty_data", image(data=b""), INVALID, "FIELD_REQUIRED", f"{IMAGE}.media.data"),
    ("no_media", lambda r: r.messages[1].parts[1].image.Clear(), INVALID, "FIELD_REQUIRED", f"{IMAGE}.media.data"),
    ("image_of_frames", image(frames=NESTED.frames), INVALID, "FRAMES_NOT_VIDEO", f"{IMAGE}.media.frames"),
    ("unknown_upload", image(media_id=b"x" * 32), "FAILED_PRECONDITION", "ITEM_NOT_FOUND", f"{IMAGE}.media.media_id"),
    ("short_media_id", image(media_id=b"x" * 31), INVALID, "MEDIA_ID_SIZE", f"{IMAGE}.media.media_id"),
    ("path", image(path="/etc/passwd"), "PERMISSION_DENIED", "PATH_FORBIDDEN", f"{IMAGE}.media.path"),
    ("path_up", video(path="../../etc/passwd"), "PERMISSION_DENIED", "PATH_FORBIDDEN", f"{VIDEO}.media.path"),
    ("url", image(url="http://example.com/a.png"), "PERMISSION_DENIED", "URL_FORBIDDEN", f"{IMAGE}.media.url"),
    ("private_url", image(url="http://10.0.0.1/a.png"), "PERMISSION_DENIED", "URL_FORBIDDEN", f"{IMAGE}.media.url"),
    ("loopback_url", image(url="http://[::1]/a.png"), "PERMISSION_DENIED", "URL_FORBIDDEN", f"{IMAGE}.media.url"),
    ("url_with_user", image(url="http://a@example.com/"), INVALID, "URL_INVALID", f"{IMAGE}.media.url"),
    ("url_with_backslash", image(url="http://example.com\\@b/"), INVALID, "URL_INVALID", f"{IMAGE}.media.url"),
    ("file_url", image(url="file:///etc/passwd"), INVALID, "URL_INVALID", f"{IMAGE}.media.url"),
    ("ftp_url", image(url="ftp://example.com/a.png"), INVALID, "URL_INVALID", f"{IMAGE}.media.url"),
    ("data_url_without_base64", image(url="data:image/png,abc"), INVALID, "DATA_URL_INVALID", f"{IMAGE}.media.url"),
    ("data_url_of_no_base64", image(url="data:image/png;base64,!!!"), INVALID, "DATA_URL_INVALID", f"{IMAGE}.media.url"),
    ("empty_data_url", image(url="data:image/png;base64,"), INVALID, "MEDIA_EMPTY", f"{IMAGE}.media.url"),
    # pictures
    ("not_a_picture", image(data=b"this is no picture at all"), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("truncated_png", image(data=SMALL.file[:-200]), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("truncated_jpeg", image(data=jpeg()[:-200]), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("header_alone", image(data=SMALL.file[:40]), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("lying_header", image(data=lying_png()), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("clip_as_picture", image(data=CLIP.file), INVALID, "IMAGE_UNREADABLE", f"{IMAGE}.media"),
    ("aspect", image(data=WIDE_FILE), INVALID, "ASPECT_RATIO", f"{IMAGE}.media"),
    (
        "bad_data_url_picture",
        image(url="data:image/png;base64," + base64.b64encode(b"no picture").decode()),
        INVALID,
        "IMAGE_UNREADABLE",
        f"{IMAGE}.media",
    ),
    # clips
    ("not_a_clip", video(data=b"this is no clip at all" * 20), INVALID, "VIDEO_UNREADABLE", f"{VIDEO}.media"),
    ("truncated_clip", video(data=CLIP.file[:300]), INVALID, "VIDEO_UNREADABLE", f"{VIDEO}.media"),
    ("playlist", video(data=b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), INVALID, "VIDEO_UNREADABLE", f"{VIDEO}.media"),
    ("concat_script", video(data=b"ffconcat version 1.0\nfile /etc/passwd\n"), INVALID, "VIDEO_UNREADABLE", f"{VIDEO}.media"),
    ("aspect_of_a_clip", video(data=clip(40, 4, 64, 16 * 1000, fps=4.0).file), INVALID, "ASPECT_RATIO", f"{VIDEO}.media"),
    ("empty_frames", video(frames=pb.FrameList()), INVALID, "FIELD_REQUIRED", f"{VIDEO}.media.frames.frames"),
    (
        "nested_frames",
        video(frames=pb.FrameList(frames=[NESTED])),
        INVALID,
        "FRAMES_NESTED",
        f"{VIDEO}.media.frames.frames[0].frames",
    ),
    (
        "frame_without_source",
        video(frames=pb.FrameList(frames=[media(SMALL.file), pb.MediaSource()])),
        INVALID,
        "FIELD_REQUIRED",
        f"{VIDEO}.media.frames.frames[1].data",
    ),
    ("uneven_frames", video(frames=UNEVEN), INVALID, "FRAME_SIZE", f"{VIDEO}.media.frames.frames[1]"),
    ("no_frame_readable", frames(0, frames=[media(b"x"), media(b"y")]), INVALID, "VIDEO_UNREADABLE", f"{VIDEO}.media"),
    ("zero_source_fps", frames(source_fps=0.0), INVALID, "SAMPLING_INVALID", f"{VIDEO}.media.frames.source_fps"),
    ("nan_source_fps", frames(source_fps=NAN), INVALID, "SAMPLING_INVALID", f"{VIDEO}.media.frames.source_fps"),
    (
        "fps_and_timestamps",
        frames(source_fps=2.0, timestamps=[0.0, 1.0, 2.0]),
        INVALID,
        "SAMPLING_CONTRADICTION",
        f"{VIDEO}.media.frames.timestamps",
    ),
    ("few_timestamps", frames(timestamps=[0.0, 1.0]), INVALID, "SAMPLING_INVALID", f"{VIDEO}.media.frames.timestamps"),
    (
        "descending_timestamps",
        frames(timestamps=[0.0, 2.0, 1.0]),
        INVALID,
        "SAMPLING_INVALID",
        f"{VIDEO}.media.frames.timestamps",
    ),
    (
        "nan_timestamp",
        frames(timestamps=[0.0, 1.0, NAN]),
        INVALID,
        "SAMPLING_INVALID",
        f"{VIDEO}.media.frames.timestamps",
    ),
    (
        "timestamps_and_a_knob",
        frames(timestamps=[0.0, 1.0, 2.0], options={"num_frames": 2}),
        INVALID,
        "SAMPLING_CONTRADICTION",
        f"{VIDEO}.options.num_frames",
    ),
    # which frames
    *[
        (f"{name}_{value}", video_options(**{name: value}), INVALID, "SAMPLING_INVALID", f"{VIDEO}.options.{name}")
        for name, values in {
            "num_frames": (0, -1, -(2**31), 2**31 - 1),
            "fps": (0.0, -1.0, NAN, INF, 1e300),
            "min_frames": (0, -4),
            "max_frames": (0, -4),
            "max_duration_s": (0.0, -1.0, NAN, INF),
        }.items()
        for value in values
    ],
    ("negative_index", video_options(frame_indices=[-1, 2]), INVALID, "SAMPLING_INVALID", f"{VIDEO}.options.frame_indices"),
    ("index_past_end", video_options(frame_indices=[0, 24]), INVALID, "SAMPLING_INVALID", f"{VIDEO}.options.frame_indices"),
    ("indices_unsorted", video_options(frame_indices=[3, 1]), INVALID, "SAMPLING_INVALID", f"{VIDEO}.options.frame_indices"),
    ("index_twice", video_options(frame_indices=[3, 3]), INVALID, "SAMPLING_INVALID", f"{VIDEO}.options.frame_indices"),
    (
        "too_many_indices",
        video_options(frame_indices=list(range(800))),
        INVALID,
        "SAMPLING_INVALID",
        f"{VIDEO}.options.frame_indices",
    ),
    (
        "indices_and_fps",
        video_options(frame_indices=[0, 1], fps=2.0),
        INVALID,
        "SAMPLING_CONTRADICTION",
        f"{VIDEO}.options.frame_indices",
    ),
    (
        "min_above_max_frames",
        video_options(min_frames=9, max_frames=4),
        INVALID,
        "SAMPLING_CONTRADICTION",
        f"{VIDEO}.options.min_frames",
    ),
    # how many pixels
    *[
        (f"image_{name}_{value}", image_options(**{name: value}), INVALID, "PIXEL_BUDGET", f"{IMAGE}.options.{name}")
        for name in ("min_pixels", "max_pixels")
        for value in (0, -1, -(2**63))
    ],
    ("image_min_above_max", image_options(min_pixels=9000, max_pixels=5000), INVALID, "PIXEL_BUDGET", f"{IMAGE}.options.max_pixels"),
    ("image_min_above_server", image_options(min_pixels=2**40), INVALID, "PIXEL_BUDGET", f"{IMAGE}.options.min_pixels"),
    ("video_min_above_max", video_options(min_pixels=90000, max_pixels=50000), INVALID, "PIXEL_BUDGET", f"{VIDEO}.options.max_pixels"),
    ("video_zero_pixels", video_options(max_pixels=0), INVALID, "PIXEL_BUDGET", f"{VIDEO}.options.max_pixels"),
    (
        "unknown_layout",
        lambda r: setattr(r.media_options, "video_layout", 9),
        INVALID,
        "VIDEO_LAYOUT",
        "media_options.video_layout",
    ),
    # items in a conversation
    ("unknown_item", part(1, 0, pb.Part(item=HASHED)), "FAILED_PRECONDITION", "ITEM_NOT_FOUND", f"{TEXT}.item.content_hash"),
    (
        "item_with_ranges",
        part(1, 0, pb.Part(item=types.MultimodalItem(modality=1, content_hash=b"x" * 32, ranges=[{"offset": 0, "length": 1}]))),
        INVALID,
        "RANGES_IN_CHAT",
        f"{TEXT}.item.ranges",
    ),
    ("item_without_payload", part(1, 0, pb.Part(item={"modality": 1})), INVALID, "FIELD_REQUIRED", f"{TEXT}.item.tensor"),
    # how tokens are drawn
    *[
        (f"{name}_{value}", sampling(**{name: value}), INVALID, PARAMS, f"sampling.{name}")
        for name, values in {
            "max_tokens": (0, -1),
            "temperature": (NAN, INF, -0.1, 100.5),
            "top_p": (0.0, 1.1, NAN, -1.0),
            "top_k": (-2, -(2**31)),
            "min_p": (-0.1, 1.1, NAN),
            "presence_penalty": (2.1, -2.1, NAN),
            "frequency_penalty": (2.1, INF),
            "repetition_penalty": (0.0, -1.0, NAN, 101.0),
            "n": (0, -1, 65, 2**31 - 1),
            "top_logprobs": (-1, 21, 2**31 - 1),
            "priority": (101, -101),
        }.items()
        for value in values
    ],
    ("max_tokens_past_context", sampling(max_tokens=2**31 - 1), INVALID, "CONTEXT_EXCEEDED", "sampling.max_tokens"),
    ("top_logprobs_alone", sampling(logprobs=False, top_logprobs=2), INVALID, PARAMS, "sampling.top_logprobs"),
    ("many_stops", sampling(stop=["x"] * 17), INVALID, PARAMS, "sampling.stop"),
    ("empty_stop", sampling(stop=["a", ""]), INVALID, PARAMS, "sampling.stop[1]"),
    ("long_stop", sampling(stop=["a" * 257]), INVALID, PARAMS, "sampling.stop[0]"),
    ("many_stop_tokens", sampling(stop_token_ids=[1] * 65), INVALID, PARAMS, "sampling.stop_token_ids"),
    ("stop_token_unknown", sampling(stop_token_ids=[1, 640]), INVALID, "TOKEN_OUT_OF_VOCABULARY", "sampling.stop_token_ids[1]"),
    ("stop_token_negative", sampling(stop_token_ids=[-1]), INVALID, "TOKEN_OUT_OF_VOCABULARY", "sampling.stop_token_ids[0]"),
    ("bias_unknown_token", sampling(logit_bias={640: 1.0}), INVALID, "TOKEN_OUT_OF_VOCABULARY", "sampling.logit_bias[640]"),
    ("bias_negative_token", sampling(logit_bias={-5: 1.0}), INVALID, "TOKEN_OUT_OF_VOCABULARY", "sampling.logit_bias[-5]"),
    ("bias_nan", sampling(logit_bias={3: NAN}), INVALID, PARAMS, "sampling.logit_bias[3]"),
    ("bias_large", sampling(logit_bias={3: 101.0}), INVALID, PARAMS, "sampling.logit_bias[3]"),
    ("many_biases", sampling(logit_bias=dict.fromkeys(range(1025), 1.0)), INVALID, PARAMS, "sampling.logit_bias"),
]  # fmt: skip


def test_the_base_is_good(pair: Pair) -> None:
    """The request that the rows change is answered."""
    assert pair.stub.Chat(chat_request(BASE, max_tokens=3)).usage.completion_tokens == 3


@pytest.mark.parametrize(("edit", "code", "reason", "field"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_bad_conversations(pair: Pair, edit: Edit, code: str, reason: str, field: str) -> None:
    """One wrong thing gives its status, reason and field within two seconds, and says nothing of the inside."""
    request = chat_request(BASE, max_tokens=3)
    edit(request)
    started = time.monotonic()
    status = outcome(lambda: pair.stub.Chat(request, timeout=20))
    assert (status.code, status.reason, status.field) == (code, reason, field), status.text
    assert time.monotonic() - started < 2
    assert_says_nothing_of_the_inside(status)


@pytest.mark.parametrize("name", ["no_messages", "truncated_png", "fps_nan", "temperature_nan", "unknown_upload"])
def test_streams_and_prepare_say_the_same(pair: Pair, name: str) -> None:
    """A stream ends with the status of the unary call; Prepare puts `chat` before the field."""
    edit, code, reason, field = next(row[1:] for row in ROWS if row[0] == name)
    request = chat_request(BASE, max_tokens=3)
    edit(request)
    streamed = outcome(lambda: list(pair.stub.StreamChat(request, timeout=20)))
    assert (streamed.code, streamed.reason, streamed.field) == (code, reason, field)
    prepared = outcome(lambda: pair.stub.Prepare(pb.PrepareRequest(chat=request), timeout=20))
    assert (prepared.code, prepared.reason, prepared.field) == (code, reason, f"chat.{field}")


@pytest.mark.parametrize("file", [png_bomb(), gif_bomb()], ids=["png", "gif"])
def test_image_bombs(pair: Pair, file: bytes) -> None:
    """A small file of very many pixels is refused by its header, in no time."""
    assert len(file) < 300_000
    request = chat_request(BASE, max_tokens=3)
    image(data=file)(request)
    started = time.monotonic()
    status = outcome(lambda: pair.stub.Chat(request, timeout=20))
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "IMAGE_TOO_LARGE")
    assert status.field == f"{IMAGE}.media"
    assert time.monotonic() - started < 1
    assert_says_nothing_of_the_inside(status)


def test_one_unreadable_frame_is_dropped(pair: Pair) -> None:
    """A broken frame of a list is left out with its time, and the report says so."""
    request = chat_request(BASE, max_tokens=3)
    frames(3, timestamps=[0.0, 1.0, 2.0, 3.0])(request)
    listed = request.messages[1].parts[2].video.media.frames.frames
    listed.insert(1, media(b"broken"))
    plan = pair.stub.Chat(request).media[1].sampling
    assert (list(plan.timestamps), plan.dropped_frames) == ([0.0, 2.0, 3.0], 1)


def test_a_message_above_the_limit(pair: Pair) -> None:
    """A request above the inline limit is RESOURCE_EXHAUSTED, with a reason where it is only just above."""
    request = chat_request(BASE, max_tokens=3)
    limit = pair.model().limits.max_inline_bytes
    image(data=bytes(limit))(request)
    status = outcome(lambda: pair.stub.Chat(request, timeout=20))
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    image(data=bytes(limit + (8 << 20)))(request)
    assert outcome(lambda: pair.stub.Chat(request, timeout=20)).code == "RESOURCE_EXHAUSTED"


def test_unknown_models_of_get_model(pair: Pair) -> None:
    """GetModel of another name is NOT_FOUND."""
    status = outcome(lambda: pair.stub.GetModel(pb.GetModelRequest(model="gpt-9")))
    assert (status.code, status.reason, status.field) == ("NOT_FOUND", "MODEL_NOT_FOUND", "model")


def test_degenerate_pictures_are_taken(pair: Pair) -> None:
    """One pixel, a palette, 16 bits, CMYK, alpha and a turned JPEG are pictures like others."""
    odd: list[Image.Image] = [
        Image.new("RGB", (1, 1)),
        Image.new("P", (60, 60), 3),
        Image.fromarray(np.full((60, 60), 30_000, np.uint16)),
        Image.new("LA", (60, 60)),
        Image.new("1", (60, 60)),
    ]
    files = []
    for picture in odd:
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append(file.getvalue())
    file = io.BytesIO()
    Image.new("CMYK", (60, 60)).save(file, "JPEG")
    files.append(file.getvalue())
    for data in files:
        request = chat_request(BASE, max_tokens=1)
        image(data=data)(request)
        assert pair.stub.Chat(request, timeout=20).usage.completion_tokens == 1
