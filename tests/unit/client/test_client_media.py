"""Media and messages: every form that a user may have, and what is uploaded by itself."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera_client import Client, Image, Item, MediaId, ServerPath, Text, TimeSeries, Video, errors
from tessera_client.messages import write_messages
from tessera_client.requests import Defaults, draft_chat
from tessera_client.uploads import Bag
from tests.fakes.inference import FakeInference, FakeServer


def written(conversation, **thresholds) -> pb.ChatRequest:
    """The request of a conversation."""
    request, bag = pb.ChatRequest(), Bag(**thresholds)
    write_messages(request, conversation, bag)
    bag.settle()
    return request


def part(value) -> pb.Part:
    """The contract's part of one value."""
    return written([value]).messages[0].parts[0]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(PilImage.open(io.BytesIO(data)).convert("RGB"))


PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


@pytest.mark.parametrize(
    "source",
    [PIXELS, PilImage.fromarray(PIXELS), PilImage.fromarray(PIXELS).convert("RGBA")],
    ids=["array", "pil", "rgba"],
)
def test_pictures_in_memory_are_sent_losslessly(source) -> None:
    """An array and a PIL image arrive with exactly their pixels."""
    assert (pixels(part(Image(source)).image.media.data) == PIXELS).all()


def test_grey_and_float_arrays(tmp_path: Path) -> None:
    """Grey arrays are pictures; floats are refused with what to give instead."""
    assert pixels(part(Image(PIXELS[:, :, 0])).image.media.data).shape == (4, 5, 3)
    with pytest.raises(errors.InvalidArgument, match="uint8") as caught:
        part(Image(PIXELS.astype(np.float32)))
    assert caught.value.field == "messages[0].parts[0].image.media"


def test_a_picture_is_turned_as_its_exif_says() -> None:
    """A PIL image with an orientation arrives upright, as its file would."""
    exif = PilImage.Exif()
    exif[0x0112] = 6  # turned by a quarter
    buffer = io.BytesIO()
    PilImage.fromarray(PIXELS).save(buffer, format="PNG", exif=exif)
    opened = PilImage.open(io.BytesIO(buffer.getvalue()))
    assert pixels(part(Image(opened)).image.media.data).shape == (5, 4, 3)


def test_files_and_bytes_are_sent_as_they_are(picture: Path) -> None:
    """A file's bytes are not decoded on the way."""
    data = picture.read_bytes()
    for source in (str(picture), picture, data, bytearray(data), io.BytesIO(data), f"file://{picture}"):
        assert part(Image(source)).image.media.data == data


def test_names_go_as_names() -> None:
    """URLs, ids of uploads and paths on the server are not read here."""
    assert part(Image("https://example.org/a.png")).image.media.url == "https://example.org/a.png"
    assert part(Image("data:image/png;base64,AAAA")).image.media.url == "data:image/png;base64,AAAA"
    assert part(Image(MediaId("ab" * 32))).image.media.media_id == b"\xab" * 32
    assert part(Video(ServerPath("clips/a.mp4"))).video.media.path == "clips/a.mp4"
    with pytest.raises(errors.InvalidArgument, match="64 hexadecimal"):
        part(Image(MediaId("abcd")))


def test_missing_and_empty_files_are_told_by_name(tmp_path: Path) -> None:
    """A file that cannot be read is an OSError with its path, before anything is sent."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.png"):
        part(Image(tmp_path / "nothing.png"))
    (tmp_path / "empty.png").touch()
    with pytest.raises(OSError, match="is empty"):
        part(Image(tmp_path / "empty.png"))
    with pytest.raises(IsADirectoryError):
        part(Image(tmp_path))


def test_frames_carry_a_rate_or_times(picture: Path) -> None:
    """A list, a four-dimensional array and a folder are frames, in order."""
    clip = np.stack([PIXELS, PIXELS + 1])
    media = part(Video(clip, source_fps=8)).video.media
    assert [int(pixels(f.data)[0, 0, 0]) for f in media.frames.frames] == [0, 1]
    assert media.frames.source_fps == 8
    timed = part(Video([picture, PIXELS], timestamps=[0.0, 0.5])).video.media.frames
    assert (list(timed.timestamps), timed.HasField("source_fps")) == ([0.0, 0.5], False)


def test_a_folder_is_frames_in_natural_order(tmp_path: Path) -> None:
    """frame2 stands before frame10."""
    for number in (10, 2, 1):
        PilImage.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").touch()
    frames = part(tmp_path).video.media.frames.frames
    assert [int(pixels(f.data)[0, 0, 0]) for f in frames] == [1, 2, 10]


def test_a_rate_beside_a_file_is_refused(picture: Path) -> None:
    """source_fps belongs to frames; the file has its own."""
    with pytest.raises(errors.InvalidArgument, match="list of frames"):
        part(Video(picture, source_fps=2))
    with pytest.raises(errors.InvalidArgument, match="at least one"):
        part(Video([]))


def test_part_options_stand_on_the_part(picture: Path) -> None:
    """Options of a part that are set are written, the others stay unset."""
    options = part(Video(picture, num_frames=4, max_pixels=10)).video.options
    assert (options.num_frames, options.max_pixels, options.HasField("fps")) == (4, 10, False)
    assert part(Image(picture, min_pixels=3)).image.options.min_pixels == 3
    assert not part(Image(picture)).image.HasField("options")
    assert part(TimeSeries(b"x", sampling_rate_hz=100)).time_series.options.sampling_rate_hz == 100


def test_dictionaries_in_openai_manner(picture: Path) -> None:
    """Parts as dictionaries, with their options beside them."""
    content = [
        {"type": "text", "text": "a"},
        {"type": "image", "image": picture, "max_pixels": 9},
        {"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "high"}},
        {"type": "video", "video": [picture], "source_fps": 2},
        {"type": "video_url", "video_url": "https://x/a.mp4", "fps": 1},
    ]
    parts = written([{"role": "user", "content": content}]).messages[0].parts
    assert [p.WhichOneof("part") for p in parts] == ["text", "image", "image", "video", "video"]
    assert parts[1].image.options.max_pixels == 9
    assert parts[2].image.media.url == "https://x/a.png"
    assert parts[3].video.media.frames.source_fps == 2
    assert parts[4].video.options.fps == 1


@pytest.mark.parametrize(
    ("conversation", "field"),
    [
        ([{"role": "user", "content": [{"type": "smell"}]}], "messages[0].parts[0]"),
        ([{"role": "user", "content": [{"type": "image", "image": b"x", "size": 3}]}], "messages[0].parts[0].size"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}, "loose"], "messages[1]"),
        ([b"bytes"], "messages[0].parts[0]"),
        ([Image(object())], "messages[0].parts[0].image.media"),
        ([{"role": "user", "content": [{"type": "image"}]}], "messages[0].parts[0]"),
    ],
)
def test_unknown_forms_are_told_with_their_path(conversation, field: str) -> None:
    """What cannot be understood is refused here, with the path that the server would use."""
    with pytest.raises(errors.InvalidArgument) as caught:
        written(conversation)
    assert caught.value.field == field


def test_bare_values_are_guessed(picture: Path, tmp_path: Path) -> None:
    """Paths, PIL images and arrays need no wrapping; an empty turn is legal."""
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"x")
    parts = written([Text("t"), "t", picture, clip, PIXELS, np.stack([PIXELS])]).messages[0].parts
    kinds = [p.WhichOneof("part") for p in parts]
    assert kinds == ["text", "text", "image", "video", "image", "video"]
    assert written({"role": "assistant", "content": None}).messages[0].role == pb.ROLE_ASSISTANT
    assert written(pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="x")])).messages[0].parts[0].text == "x"
    assert not written([]).messages


def test_large_media_are_named_and_uploaded() -> None:
    """Above the threshold a file goes ahead, once, and the request holds its hash."""
    big, small = b"b" * 20, b"s" * 10
    draft = draft_chat([Image(big), Image(small), Image(big)], {}, Defaults(upload_above_bytes=10))
    media = [p.image.media for p in draft.request.messages[0].parts]
    assert [m.WhichOneof("source") for m in media] == ["media_id", "data", "media_id"]
    assert media[0].media_id == hashlib.sha256(big).digest()
    assert [upload.size_bytes for upload in draft.uploads] == [20]


def test_many_small_media_stay_below_the_total() -> None:
    """The largest are uploaded until the rest fits into one request."""
    sources = [bytes([i]) * (10 + i) for i in range(4)]
    draft = draft_chat([Image(s) for s in sources], {}, Defaults(inline_total_bytes=25))
    kinds = [p.image.media.WhichOneof("source") for p in draft.request.messages[0].parts]
    assert kinds == ["data", "data", "media_id", "media_id"]


def test_a_large_data_url_is_uploaded_as_bytes() -> None:
    """A data URL above the threshold is decoded and uploaded; a broken one is told."""
    data = bytes(range(100))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    draft = draft_chat([Image(url)], {}, Defaults(upload_above_bytes=50))
    assert draft.uploads[0].header().media.mime_type == "image/png"
    assert draft.request.messages[0].parts[0].image.media.media_id == hashlib.sha256(data).digest()
    with pytest.raises(errors.InvalidArgument, match="base64"):
        draft_chat([Image(url + "!")], {}, Defaults(upload_above_bytes=50))


def test_uploads_go_ahead_of_the_request_with_progress(server: FakeServer, tmp_path: Path) -> None:
    """The file is sent in chunks before the chat, and progress is told up to the end."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(bytes(5 << 20))
    seen: list = []
    with Client(server.address, timeout=10, on_upload=seen.append) as client:
        client.chat([Video(path), "What?"])
        assert [method for method, *_ in server.service.requests] == ["UploadMedia", "Chat"]
        assert [p.sent_bytes >> 20 for p in seen] == [1, 2, 3, 4, 5]
        assert (seen[0].name, seen[0].total_bytes) == ("clip.mp4", 5 << 20)
        again = client.upload(path)
    assert again.existed
    assert again.media_id == hashlib.sha256(bytes(5 << 20)).digest()


def test_an_upload_is_a_source(client: Client, service: FakeInference) -> None:
    """What upload() returned stands for the media."""
    uploaded = client.upload(b"picture")
    client.chat([Image(uploaded), "What?"])
    assert service.last.messages[0].parts[0].image.media.media_id == uploaded.media_id
    with pytest.raises(errors.InvalidArgument, match="uploaded"):
        client.upload("https://x/a.png")


def test_items_travel_as_tensor_or_by_hash(client: Client, service: FakeInference) -> None:
    """A small tensor goes inline; a large one is uploaded and named by its content hash."""
    array = np.ones((1, 32, 32, 3), np.uint8)
    item = Item("image", "pixels_u8", array, grid_thw=(1, 2, 2), ranges=((0, 1),))
    client.generate([1, 2], items=[item])
    assert service.last.items[0].tensor.data == array.tobytes()
    with Client(client.address, timeout=10, upload_above_bytes=100) as eager:
        eager.generate([1, 2], items=[item])
    sent = service.last.items[0]
    assert sent.WhichOneof("payload") == "content_hash"
    assert sent.content_hash in service.uploads
    assert (sent.ranges[0].length, sent.grid_thw.h) == (1, 2)
    assert Item.from_proto(item.to_proto()).array.shape == (1, 32, 32, 3)


def test_bfloat16_items_keep_their_bits() -> None:
    """uint16 patterns with dtype BF16 travel as BF16, side tensors too."""
    bits = np.full((4, 8), 0x3F80, np.uint16)
    item = Item("image", "embeddings", bits, grid_thw=(1, 4, 4), dtype="BF16", side_arrays={"deepstack": bits[None]})
    message = item.to_proto()
    assert message.tensor.dtype == types.D_TYPE_BF16
    assert message.side_tensors["deepstack"].dtype == types.D_TYPE_BF16
    assert (Item.from_proto(message).array == bits).all()


def test_a_wrong_item_is_told_with_its_path(client: Client) -> None:
    """Names that the contract does not have are refused here."""
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate([1], items=[Item("smell", content_hash=b"x" * 32)])
    assert caught.value.field == "items[0]"
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate(["a"])  # type: ignore[list-item]
    assert caught.value.field == "token_ids.ids"
