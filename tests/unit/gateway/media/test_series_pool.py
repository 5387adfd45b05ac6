"""Time series in the pool's real processes: results, refusals, limits, and the process goes on."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from gateway.media.errors import serve_error
from gateway.media.options import MediaOptions, ServerLimits, TimeSeriesOptions
from gateway.media.pool import MediaJob, MediaPool
from gateway.media.problem import MediaProblem
from gateway.media.process import ProcessLimits
from gateway.media.source import MediaBytes
from tessera.errors import InvalidArgument, ResourceExhausted, ServeError, Unimplemented
from tessera.modality import Modality, PayloadKind
from tests.unit.gateway.media.media_fixtures import RULES, encoded, image_job, picture
from tests.unit.gateway.media.series_files import npy, sound, wave


def series_job(
    data: bytes | tuple[bytes, ...],
    options: MediaOptions = TimeSeriesOptions(),  # noqa: B008  (frozen)
    limits: ServerLimits = ServerLimits(),  # noqa: B008  (frozen)
) -> MediaJob:
    """A job of one series."""
    digest = hashlib.sha256(data if isinstance(data, bytes) else b"".join(data)).digest()
    return MediaJob(Modality.TIME_SERIES, MediaBytes(data, digest), options, RULES, limits)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[MediaPool]:
    """One process for all tests."""
    pool = MediaPool(1, ProcessLimits(cpu_s=10, region_bytes=64 << 20))
    await pool.start()
    yield pool
    await pool.close()


pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("kind", ["npy", "csv", "wav", "flac", "mp3", "ogg"])
async def test_a_series_is_processed(pool: MediaPool, kind: str) -> None:
    """Every format gives an item of float32 samples with rate, channels and hash, inside the sandbox."""
    samples = wave(4000)
    if kind == "npy":
        data, rate = npy(samples.astype(np.float64)), 0.0
    elif kind == "csv":
        rows = (f"{i / 100:.2f},{a!r},{b!r}" for i, (a, b) in enumerate(samples.tolist()))
        data, rate = ("time,a,b\n" + "\n".join(rows)).encode(), 100.0
    else:
        pytest.importorskip("soundfile")
        data, rate = sound(samples, kind), 16_000.0
    item = (await pool.process(series_job(data))).item
    assert (item.modality, item.payload_kind, item.dtype) == (Modality.TIME_SERIES, PayloadKind.SAMPLES, "F32")
    assert item.array is not None and item.array.dtype == np.float32 and not item.array.flags.writeable
    assert item.array.shape == samples.shape and item.channels == 2 and item.grid_thw is None
    assert item.sampling_rate_hz == pytest.approx(rate)
    assert item.compute_hash() == item.content_hash
    assert np.abs(item.array - samples)[500:-500].max() < 0.1


async def test_the_option_goes_before_the_file(pool: MediaPool) -> None:
    """A rate that is asked for holds, whatever the file says, and changes the item's name."""
    data = sound(wave(), "wav")
    asked = await pool.process(series_job(data, TimeSeriesOptions(50.0)))
    plain = await pool.process(series_job(data))
    assert (asked.item.sampling_rate_hz, plain.item.sampling_rate_hz) == (50.0, 16_000.0)
    assert asked.item.content_hash != plain.item.content_hash


@pytest.mark.parametrize(
    ("job", "error", "reason", "field"),
    [
        (series_job(npy(wave())[:-1]), InvalidArgument, "SERIES_UNREADABLE", "media"),
        (series_job(b"1\n2\nthree\n"), InvalidArgument, "SERIES_VALUE", "media"),
        (series_job(b"1\n2\n3\n4\n"), InvalidArgument, "SERIES_TOO_SHORT", "media"),
        (series_job(npy(np.zeros((9, 1025)))), InvalidArgument, "SERIES_CHANNELS", "media"),
        (
            series_job(npy(wave()), limits=ServerLimits(max_series_samples=1199)),
            ResourceExhausted,
            "SERIES_TOO_LARGE",
            "media",
        ),
        (
            series_job(npy(wave()), limits=ServerLimits(max_media_bytes=100)),
            ResourceExhausted,
            "MEDIA_TOO_LARGE",
            "media",
        ),
        (series_job(encoded(picture(8, 8))), InvalidArgument, "SERIES_UNREADABLE", "media"),
        (series_job((b"a", b"b")), InvalidArgument, "FRAMES_NOT_VIDEO", "media"),
        (series_job(b""), InvalidArgument, "MEDIA_EMPTY", "media"),
        *(
            (
                series_job(npy(wave()), TimeSeriesOptions(rate)),
                InvalidArgument,
                "SAMPLING_RATE",
                "options.sampling_rate_hz",
            )
            for rate in (0.0, -1.0, float("inf"), float("nan"))
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_refusals(pool: MediaPool, job: MediaJob, error: type[ServeError], reason: str, field: str) -> None:
    """What cannot be served is a typed error, and the process takes the next job."""
    pids = pool.pids
    with pytest.raises(error) as refusal:
        await pool.process(job)
    assert (refusal.value.reason, refusal.value.field) == (reason, field)
    assert (await pool.process(series_job(npy(wave())))).item.channels == 2
    assert pool.pids == pids


async def test_a_huge_header_costs_nothing(pool: MediaPool) -> None:
    """A shape of exabytes is refused by the header."""
    data = npy(wave()).replace(b"(600, 2), }" + b" " * 9, b"(600000000000, 2), }")
    with pytest.raises(ResourceExhausted) as error:
        await pool.process(series_job(data))
    assert error.value.reason == "SERIES_TOO_LARGE"


async def test_text_that_takes_too_long_ends_its_process_alone() -> None:
    """The CPU limit ends a job of endless text; another process takes its place."""
    pool = MediaPool(1, ProcessLimits(cpu_s=1, region_bytes=64 << 20))
    await pool.start()
    try:
        with pytest.raises(ResourceExhausted) as error:
            await pool.process(series_job(b"1\n" * (10 << 20)))
        assert error.value.reason == "MEDIA_CPU"
        assert (await pool.process(series_job(npy(wave())))).item.channels == 2
    finally:
        await pool.close()


async def test_beside_pictures(pool: MediaPool) -> None:
    """Series and pictures go through the same processes, one after the other."""
    jobs = [series_job(npy(wave(100 + n))) for n in range(4)] + [image_job(encoded(picture(64, 64)))] * 4
    results = await asyncio.gather(*map(pool.process, jobs))
    assert [r.modality for r in results] == [Modality.TIME_SERIES] * 4 + [Modality.IMAGE] * 4
    assert [len(r.item.array) for r in results[:4]] == [100, 101, 102, 103]  # type: ignore[arg-type]


async def test_a_missing_library_is_unimplemented() -> None:
    """A process's problem of code UNIMPLEMENTED becomes the error of that code."""
    error = serve_error(MediaProblem("No.", reason="SERIES_FORMAT_MISSING", field="media", code="UNIMPLEMENTED"))
    assert isinstance(error, Unimplemented) and error.reason == "SERIES_FORMAT_MISSING"
