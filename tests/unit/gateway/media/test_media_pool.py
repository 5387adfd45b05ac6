"""The pool of real processes: results, deaths, cancellations, limits, and nothing left behind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.media import pool as pool_module
from gateway.media.image import decode_image
from gateway.media.options import ImageOptions, VideoOptions
from gateway.media.pool import MediaPool
from gateway.media.process import ProcessLimits
from gateway.media.resize import PillowResizer
from gateway.media.rules import image_size
from gateway.media.source import MediaBytes
from tessera.errors import InvalidArgument, ResourceExhausted, ServeError, Unavailable
from tests.unit.gateway.media.media_fixtures import RULES, encoded, image_job, picture, video_job, write_clip

pytestmark = pytest.mark.slow

PICTURE = encoded(picture(100, 170), "JPEG")


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[MediaPool]:
    """One process, whose scratch folder is empty again afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pool = MediaPool(1, scratch_dir=scratch)
    await pool.start()
    yield pool
    await pool.close()
    assert not list(scratch.iterdir())


def job_folders(pool_scratch: Path) -> list[Path]:
    """Folders of running jobs."""
    return list(pool_scratch.glob("*/job-*"))


def alive(pid: int) -> bool:
    """Whether a process is there."""
    return Path(f"/proc/{pid}").exists()


def about(pid: int, name: str) -> str:
    """A file that the kernel keeps about a process."""
    return Path(f"/proc/{pid}/{name}").read_text()


def entries(folder: Path) -> list[Path]:
    """What lies in a folder."""
    return list(folder.iterdir())


async def until(condition: Callable[[], bool]) -> None:
    """Give way until another process has done something."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_picture_is_processed(pool: MediaPool) -> None:
    """Pixels, grid, hash and budgets; the same as without a process."""
    result = await pool.process(image_job(PICTURE))
    pixels = decode_image(PICTURE, 1 << 20)
    height, width = image_size(100, 170, RULES, 32 * 32, 512 * 512)
    expected = np.empty((1, height, width, 3), np.uint8)
    PillowResizer()(pixels[None], expected)
    assert result.item.array is not None
    assert np.abs(result.item.array.astype(int) - expected).max() <= 2
    assert (result.item.grid_thw, result.source_size) == ((1, height // 16, width // 16), (100, 170))
    assert result.item.compute_hash() == result.item.content_hash
    assert (result.effective_min_pixels, result.effective_max_pixels, result.plan) == (32 * 32, 512 * 512, None)
    assert not result.item.array.flags.writeable


async def test_a_clip_file_and_its_list_of_frames_are_processed(pool: MediaPool, tmp_path: Path) -> None:
    """The loader's file is gone when the result is there."""
    data = write_clip(tmp_path / "clip.avi").read_bytes()
    clip = await pool.process(video_job(MediaBytes(data, b"")))
    assert clip.plan is not None
    assert clip.item.timestamps == clip.plan.timestamps == tuple(i / 10 for i in (0, 6, 11, 17, 22, 28, 33, 39))
    assert not job_folders(tmp_path / "scratch")
    frames = tuple(encoded(picture(64, 96, seed)) for seed in range(3))
    listed = await pool.process(video_job(MediaBytes(frames, b"", timestamps=(0.0, 1.0, 2.5))))
    assert (listed.item.timestamps, listed.item.grid_thw) == ((0.0, 1.0, 2.5), (2, 4, 6))


async def test_problems_keep_the_process(pool: MediaPool, tmp_path: Path) -> None:
    """A broken file costs its own request and nothing else."""
    before = pool.pids
    bad = [
        (image_job(b"no picture"), "IMAGE_UNREADABLE", "media"),
        (image_job(PICTURE, ImageOptions(min_pixels=0)), "PIXEL_BUDGET", "options.min_pixels"),
        (image_job(encoded(picture(1, 400))), "ASPECT_RATIO", "media"),
        (video_job(MediaBytes(b"no clip", b"")), "VIDEO_UNREADABLE", "media"),
        (video_job(MediaBytes(b"no clip", b""), VideoOptions(fps=-1.0)), "SAMPLING_INVALID", "options.fps"),
        (video_job(MediaBytes((PICTURE, b""), b"")), "MEDIA_EMPTY", "media"),
        (image_job(b""), "MEDIA_EMPTY", "media"),
    ]
    for job, reason, field in bad:
        with pytest.raises(InvalidArgument) as caught:
            await pool.process(job)
        assert (caught.value.reason, caught.value.field) == (reason, field)
    assert not job_folders(tmp_path / "scratch")
    await pool.process(image_job(PICTURE))
    assert pool.pids == before


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGSEGV, InvalidArgument, "MEDIA_DECODE_CRASHED"),
        (signal.SIGKILL, InvalidArgument, "MEDIA_DECODE_CRASHED"),
        (signal.SIGXCPU, ResourceExhausted, "MEDIA_CPU"),
    ],
)
async def test_a_death_costs_one_request(
    pool: MediaPool, tmp_path: Path, number: signal.Signals, code: type[ServeError], reason: str
) -> None:
    """The next job runs in a new process, and the dead one's folder is gone."""
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    job = asyncio.create_task(pool.process(video_job(MediaBytes(b"0000ftypisom", b""))))
    await until(lambda: bool(job_folders(tmp_path / "scratch")))
    os.kill(pid, number)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(code) as caught:
        await job
    assert caught.value.reason == reason
    await pool.process(image_job(PICTURE))
    assert pool.pids != [pid]
    await until(lambda: not job_folders(tmp_path / "scratch"))


async def test_cancelling_ends_the_work(pool: MediaPool, tmp_path: Path) -> None:
    """The process that runs the job is ended, its folder removed, and another takes over."""
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    running = asyncio.create_task(pool.process(video_job(MediaBytes(b"0000ftypisom", b""))))
    waiting = asyncio.create_task(pool.process(image_job(PICTURE)))
    leaving = asyncio.create_task(pool.process(image_job(PICTURE)))
    await until(lambda: bool(job_folders(tmp_path / "scratch")) and pool.waiting == 2)
    for task in (running, leaving):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await waiting).item.grid_thw is not None
    assert pool.pids != [pid]
    assert not alive(pid)
    await until(lambda: not job_folders(tmp_path / "scratch"))


async def test_memory_is_limited(tmp_path: Path) -> None:
    """A picture that needs more than the process may have is refused, and the process lives on."""
    pool = MediaPool(1, ProcessLimits(memory_bytes=64 << 20), scratch_dir=tmp_path)
    await pool.start()
    before = pool.pids
    with pytest.raises(ResourceExhausted) as caught:
        await pool.process(image_job(encoded(np.zeros((4096, 8192, 3), np.uint8), compress_level=1)))
    assert (caught.value.reason, caught.value.retry_after_s) == ("MEDIA_MEMORY", None)
    await pool.process(image_job(PICTURE))
    assert pool.pids == before
    await pool.close()


async def test_more_than_the_queue_takes_is_refused(tmp_path: Path) -> None:
    """At once, with advice to try again."""
    pool = MediaPool(1, scratch_dir=tmp_path, max_waiting=1)
    await pool.start()
    os.kill(pool.pids[0], signal.SIGSTOP)
    jobs = [asyncio.create_task(pool.process(image_job(PICTURE))) for _ in range(2)]
    await until(lambda: pool.waiting == 1)
    with pytest.raises(ResourceExhausted) as caught:
        await pool.process(image_job(PICTURE))
    assert (caught.value.reason, caught.value.retry_after_s) == ("MEDIA_QUEUE_FULL", 1.0)
    os.kill(pool.pids[0], signal.SIGCONT)
    await asyncio.gather(*jobs)
    await pool.close()


async def test_closing_leaves_nothing_behind(tmp_path: Path) -> None:
    """Running and waiting jobs fail, processes end, the folder goes."""
    pool = MediaPool(2, scratch_dir=tmp_path)
    await pool.start()
    pids = pool.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    jobs = [asyncio.create_task(pool.process(image_job(PICTURE))) for _ in range(3)]
    await until(lambda: pool.waiting == 1)
    await pool.close()
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert {type(result) for result in results} <= {Unavailable, InvalidArgument}
    assert not any(alive(pid) for pid in pids)
    assert not entries(tmp_path)
    with pytest.raises(Unavailable):
        await pool.process(image_job(PICTURE))


async def test_processes_end_with_the_gateway(tmp_path: Path) -> None:
    """When the gateway's end of the lifeline closes, as it does at its death, the process ends and cleans up."""
    pool = MediaPool(1, scratch_dir=tmp_path)
    await pool.start()
    (pid,) = pool.pids
    (process,) = pool._idle
    os.close(process._lifeline)
    process._lifeline = -1
    await until(lambda: process._process.poll() is not None)
    assert not entries(tmp_path)
    await pool.close()
    assert not alive(pid)


async def test_a_process_imports_neither_torch_nor_grpc(pool: MediaPool) -> None:
    """What it maps says what it loaded; it starts fast and stays small."""
    await pool.process(image_job(PICTURE))
    maps = about(pool.pids[0], "maps")
    assert "libtorch" not in maps
    assert "cygrpc" not in maps
    assert "PYTEST" not in about(pool.pids[0], "environ")


async def test_pictures_of_many_requests_run_side_by_side(tmp_path: Path) -> None:
    """Each result belongs to its own job."""
    pool = MediaPool(2, scratch_dir=tmp_path)
    await pool.start()
    sizes = [(32 + 16 * n, 64) for n in range(12)]
    jobs = [image_job(encoded(np.full((*size, 3), n * 20, np.uint8))) for n, size in enumerate(sizes)]
    results = await asyncio.gather(*map(pool.process, jobs))
    for n, (size, result) in enumerate(zip(sizes, results, strict=True)):
        assert result.source_size == size
        assert result.item.array is not None
        assert set(np.unique(result.item.array)) == {n * 20}
    await pool.close()


@pytest.fixture
def broken_library(tmp_path: Path) -> Path:
    """A folder whose resize library does not load, so that a process which looks there does not start."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "libtessera_resize.so").write_bytes(b"")
    return folder


async def test_a_pool_that_cannot_start_says_so(tmp_path: Path, broken_library: Path) -> None:
    """And leaves neither processes nor folders."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pool = MediaPool(2, scratch_dir=scratch)
    pool._resize_search = (broken_library,)
    with pytest.raises(Unavailable) as caught:
        await pool.start()
    assert (caught.value.reason, pool.pids, entries(scratch)) == ("MEDIA_POOL", [], [])


async def test_processes_that_do_not_come_back_fail_who_waits(pool: MediaPool, broken_library: Path) -> None:
    """Rather than let them wait for ever; and the pool serves again when one starts."""
    (pid,) = pool.pids
    search, pool._resize_search = pool._resize_search, (broken_library,)
    os.kill(pid, signal.SIGSTOP)
    running, waiting = (asyncio.create_task(pool.process(image_job(PICTURE))) for _ in range(2))
    await until(lambda: pool.waiting == 1)
    os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [result.reason for result in results if isinstance(result, ServeError)] == [
        "MEDIA_DECODE_CRASHED",
        "MEDIA_POOL",
    ]
    with pytest.raises(Unavailable):
        await pool.process(image_job(PICTURE))
    pool._resize_search = search
    await until(lambda: bool(pool.pids))
    await pool.process(image_job(PICTURE))


async def test_a_job_that_is_nearly_done_keeps_its_process() -> None:
    """A caller that leaves at the last moment does not cost a process."""

    async def done_soon() -> str:
        await asyncio.sleep(0)
        return "done"

    async def never() -> None:
        await asyncio.Event().wait()

    soon, late = asyncio.ensure_future(done_soon()), asyncio.ensure_future(never())
    await asyncio.gather(pool_module._end(soon), pool_module._end(late))  # type: ignore[arg-type]
    assert (soon.result(), late.cancelled()) == ("done", True)
