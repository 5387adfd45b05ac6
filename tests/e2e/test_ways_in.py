"""Each family takes each modality by every way in, and answers as for inline bytes; README names these tests."""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs
from tests.e2e.site import Site
from tests.e2e.ways import FILE_WAYS, FRAME_WAYS, VISUAL_WAYS, Scene, media_of
from tests.parity.cases import CLIP, CLIP_B, SMALL, TALL, Case, chat_request, user
from tests.parity.families import FAMILIES

VISUAL_FAMILIES = ("qwen3_vl", *FAMILIES, "interns1_pro")
CELLS = [
    *[(family, modality, way) for family in VISUAL_FAMILIES for modality in ("image", "video") for way in VISUAL_WAYS],
    *[("interns1_pro", "time_series", way) for way in FILE_WAYS],
]
FRAME_CELLS = list(itertools.product(VISUAL_FAMILIES, FRAME_WAYS))
MEDIA = {"image": (SMALL, TALL), "video": (CLIP, CLIP_B)}
MIMES = {"image": "image/png", "video": "video/x-msvideo", "time_series": "application/x-npy"}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One web server for the module."""
    served = Site()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of allowed paths."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture
def scene_of(pairs: Pairs, tiny: Callable[[str], Path], site: Site, root: Path) -> Callable[[str, str], Scene]:
    """What a way may use, for a family and a modality."""

    def make(family: str, modality: str) -> Scene:
        model = tiny("5.x" if family == "qwen3_vl" else family)
        allowed = ("--allow-url-host", f"localhost:{site.port}", "--allow-url-network", "127.0.0.0/8")
        pair: Pair = pairs.get(Flags(model, gateway=(*allowed, "--media-root", str(root))))
        patches = dict(FAMILIES[family].patches) if family in FAMILIES else {}
        file = media_of(request_for(modality)).data
        return Scene(pair, model, modality, file, MIMES[modality], site.put, root, patches)

    return make


def series(seed: int, length: int, channels: int) -> bytes:
    """A time series as an npy file."""
    values = np.random.default_rng(seed).standard_normal((length, channels)).astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def request_for(modality: str) -> pb.ChatRequest:
    """Two media of one modality, inline, and a question."""
    if modality != "time_series":
        first, second = MEDIA[modality]
        return chat_request(Case("ways", (user("Look: ", first, second, "What is it?"),)), max_tokens=6)
    request = chat_request(Case("ways", (user("Look: "),)), max_tokens=6)
    for seed, length, channels, rate in ((1, 900, 2, 100.0), (2, 500, 1, 50.0)):
        part = request.messages[0].parts.add().time_series
        part.media.data = series(seed, length, channels)
        part.options.sampling_rate_hz = rate
    request.messages[0].parts.add().text = "What is it?"
    return request


def name_of(cell: tuple[str, ...]) -> str:
    """The cell's name in README's table."""
    return "-".join(cell)


@pytest.mark.parametrize(("family", "modality", "way"), CELLS, ids=[name_of(cell) for cell in CELLS])
def test_way(family: str, modality: str, way: str, scene_of: Callable[[str, str], Scene]) -> None:
    """The answer is that to inline bytes."""
    scene = scene_of(family, modality)
    expected = scene.stub.Chat(request_for(modality)).choices[0]
    assert len(expected.token_ids) == 6
    choice = VISUAL_WAYS[way](scene, request_for(modality))
    assert list(choice.token_ids) == list(expected.token_ids)


@pytest.mark.parametrize(("family", "way"), FRAME_CELLS, ids=[f"{f}-video-{w}" for f, w in FRAME_CELLS])
def test_frames(family: str, way: str, scene_of: Callable[[str, str], Scene]) -> None:
    """Frames with their times, or in one data URL, are the same frames as a list with its rate."""
    scene = scene_of(family, "video")
    asked, like = FRAME_WAYS[way]
    choices = [one(scene, request_for("video")) for one in (asked, like)]
    assert len(choices[0].token_ids) == 6
    assert list(choices[0].token_ids) == list(choices[1].token_ids)
