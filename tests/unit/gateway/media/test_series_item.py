"""What a pool process says of a series is checked, and what names one in the processor cache."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.media.item import build_series, series_place
from gateway.media.options import ServerLimits, TimeSeriesOptions
from gateway.media.pool import MediaJob
from gateway.media.source import MediaBytes
from gateway.pipeline import check_samples
from gateway.processor.cache import cache_key
from gateway.server import make_limits
from gateway.settings import GatewaySettings
from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tessera.time_series import MAX_CHANNELS
from tests.unit.gateway.media.media_fixtures import RULES, image_job

ARRAY = np.ones((100, 2), np.float32)
GOOD: dict[str, Any] = {
    "array": {"offset": 64, "shape": [100, 2]},
    "sampling_rate_hz": 10.0,
    "content_hash": hashlib.sha256(b"").hexdigest(),
}


def test_a_good_answer() -> None:
    """An item of samples comes of it, with rate, channels and hash."""
    assert series_place(GOOD, 4096) == (64, (100, 2))
    made = build_series(GOOD, ARRAY)
    assert (made.modality, made.size_bytes, made.plan) == (Modality.TIME_SERIES, 800, None)
    item = made.item
    assert (item.payload_kind, item.dtype, item.channels, item.grid_thw) == (PayloadKind.SAMPLES, "F32", 2, None)
    assert (item.sampling_rate_hz, item.content_hash.hex()) == (10.0, GOOD["content_hash"])


@pytest.mark.parametrize(
    "place",
    [
        {"offset": -64, "shape": [100, 2]},
        {"offset": 64, "shape": [100, 0]},
        {"offset": 64, "shape": [100, -2]},
        {"offset": 64, "shape": [2**62, 2]},
        {"offset": 64, "shape": [100.0, 2]},
        {"offset": 4000, "shape": [100, 2]},
        {"offset": 64, "shape": [100, 2, 1]},
        {"offset": "64", "shape": [100, 2]},
    ],
)
def test_places_outside_of_the_memory(place: dict[str, Any]) -> None:
    """A result that cannot lie in the shared memory is no answer."""
    with pytest.raises((ValueError, TypeError)):
        series_place({"array": place}, 4096)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate_hz": math.nan},
        {"sampling_rate_hz": math.inf},
        {"sampling_rate_hz": -1.0},
        {"sampling_rate_hz": "1"},
        {"content_hash": "00"},
        {"content_hash": "no"},
    ],
)
def test_answers_with_wrong_numbers(change: dict[str, Any]) -> None:
    """Numbers that cannot be are no answer."""
    with pytest.raises((ValueError, TypeError)):
        build_series(GOOD | change, ARRAY)


def test_answers_with_wrong_values() -> None:
    """Samples that are not finite are no answer; a series that is too short is the caller's error."""
    with pytest.raises(ValueError, match="wrong values"):
        build_series(GOOD, np.full((100, 2), np.nan, np.float32))
    with pytest.raises(InvalidArgument) as short:
        build_series(GOOD, ARRAY[:4])
    assert (short.value.reason, short.value.field) == ("SERIES_TOO_SHORT", "media")


def job(name: bytes, rate: float | None = None) -> MediaJob:
    """A series of that name."""
    return MediaJob(Modality.TIME_SERIES, MediaBytes(b"x", name), TimeSeriesOptions(rate), RULES, ServerLimits())


def test_cache_keys() -> None:
    """Source and rate name a result; another modality's entry of the same file is another."""
    assert cache_key(job(b"a")) == cache_key(job(b"a"))
    keys = {cache_key(job(b"a")), cache_key(job(b"b")), cache_key(job(b"a", 1.0)), cache_key(job(b"a", 2.0))}
    assert len({*keys, cache_key(image_job(b"x", sha256=b"a"))}) == 5


def test_large_files_wait_like_clips() -> None:
    """A long text does not keep pictures waiting; a short series is a small job."""
    assert not job(b"a").is_big
    assert replace(job(b"a"), media=MediaBytes(bytes(5 << 20), b"a")).is_big


def test_items_of_the_caller_keep_to_the_budget() -> None:
    """Raw samples above the server's budget are refused by size, embeddings and pictures are not its matter."""
    limits = ServerLimits(max_series_samples=199)
    item = MultimodalItem(Modality.TIME_SERIES, PayloadKind.SAMPLES, b"", "F32", ARRAY)
    with pytest.raises(ResourceExhausted) as error:
        check_samples(item, limits)
    assert (error.value.reason, error.value.field, error.value.retry_after_s) == (
        "SERIES_TOO_LARGE",
        "tensor.shape",
        None,
    )
    check_samples(item, ServerLimits(max_series_samples=200))
    check_samples(replace(item, payload_kind=PayloadKind.EMBEDDINGS), limits)


def test_limits() -> None:
    """The pool's processes know the bound on channels without importing it; the flag sets that on samples."""
    limits = make_limits(GatewaySettings(model="m", max_series_samples=7))
    assert (limits.max_series_samples, limits.max_series_channels) == (7, MAX_CHANNELS)
    assert ServerLimits().max_series_channels == MAX_CHANNELS
