"""What every video backend must do, whichever it is; one that is not installed here skips, and says so."""

import asyncio
import gc
import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.media import loaders
from gateway.media.child import Region, run
from gateway.media.decode import Pixels, VideoWork, process_video
from gateway.media.options import VideoOptions
from gateway.media.pool import MediaPool
from gateway.media.problem import MediaProblem
from gateway.media.resize import load_resizer
from gateway.media.source import MediaBytes
from gateway.media.video import VideoLoader, steady_fps
from tessera.errors import FailedPrecondition
from tests.unit.gateway.media.clips import (
    forget_rate,
    frame_of,
    index_of,
    turn,
    write_h264,
    write_mjpeg,
    write_odd,
    write_reordered_avi,
    write_sound,
    write_vp8,
)
from tests.unit.gateway.media.media_fixtures import LIMITS, RULES, damage_frames, video_job

RESIZE = load_resizer()
LARGE = replace(RULES, video_min_pixels=1, video_max_pixels=1 << 24)  # nothing is resized
UNEVEN_MS = (0, 100, 200, 1200, 1300, 1400, 3000, 3100)


def usable(name: str) -> bool:
    """Whether a backend can be tested here."""
    try:
        loaders.load(name)
    except loaders.LoaderMissingError:
        return False
    return True


HERE = [name for name in loaders.ORDER if usable(name)]


@pytest.fixture(params=HERE)
def loader(request: pytest.FixtureRequest) -> VideoLoader:
    """One backend after the other."""
    return loaders.load(request.param)


@pytest.mark.parametrize("name", loaders.ORDER)
def test_a_backend_is_held_to_the_contract(name: str) -> None:
    """Every test of this file runs with each backend that is installed; one that is not is named here, as skipped."""
    if name not in HERE:
        pytest.skip(str(loaders.missing(name)))
    assert loaders.load(name).name == name


def clip(loader: VideoLoader, path: Path, **options: object) -> Pixels:
    """A processed file, at its own size where that is a multiple of 32."""
    work = VideoWork(VideoOptions(**options), LARGE, LIMITS)  # type: ignore[arg-type]
    return process_video(path, work, loader, RESIZE, lambda shape: np.empty(shape, np.uint8))


def frames(loader: VideoLoader, path: Path, indices: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Frames as decoded."""
    reader = loader.open(path)
    reader.count(1000)
    result = {index: frame.copy() for index, frame in reader.read(indices)}
    reader.close()
    return result


def plan_of(result: Pixels) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Indices and times of a result."""
    assert result.plan is not None
    return result.plan.frame_indices, result.plan.timestamps


@pytest.mark.parametrize("name", ["clip.avi", "clip.mp4", "clip.mkv"])
def test_the_frames_are_the_clip_s(loader: VideoLoader, tmp_path: Path, name: str) -> None:
    """Each is the frame of its index, with the colours that went in, whatever the container and codec."""
    path = tmp_path / name
    write_mjpeg(path, 24) if path.suffix == ".avi" else write_h264(path, range(0, 2400, 100))
    taken = frames(loader, path, (0, 5, 9, 10, 23))
    assert list(taken) == [0, 5, 9, 10, 23]
    for index, frame in taken.items():
        assert (frame.shape, frame.dtype, frame.flags.c_contiguous) == ((64, 96, 3), np.uint8, True)
        assert np.abs(frame.astype(int) - frame_of(index)).mean() < 4
    indices, times = plan_of(clip(loader, path))
    assert (indices, times) == ((0, 8, 15, 23), tuple(index / 10 for index in indices))


def test_frames_of_a_container_without_times_come_in_their_order(loader: VideoLoader, tmp_path: Path) -> None:
    """AVI knows when to decode, not when to show: frames that are stored out of order are still shown in order."""
    if loader.name == "torchcodec":
        pytest.xfail("torchcodec takes an AVI's times of decoding for times of display")
    path = write_reordered_avi(tmp_path / "clip.avi", 24)
    assert {index: index_of(frame) for index, frame in frames(loader, path, range(24)).items()} == {
        index: index for index in range(24)
    }
    indices, times = plan_of(clip(loader, path))
    assert times == tuple(index / 10 for index in indices)


def test_bytes_give_what_the_path_gives(loader: VideoLoader, tmp_path: Path) -> None:
    """A job's bytes become a file for as long as the backend reads it, and the same pixels."""
    path = write_h264(tmp_path / "clip.mp4", range(0, 2400, 100))
    expected = clip(loader, path)
    assert run_job(loader, path.read_bytes(), tmp_path / "job").content_hash == expected.content_hash
    assert not list((tmp_path / "job").iterdir())


def run_job(loader: VideoLoader, data: bytes, folder: Path) -> Pixels:
    """Process bytes as a pool process does."""
    folder.mkdir()
    region = Region(mmap.mmap(-1, 1 << 22))
    region.bytes[: len(data)] = np.frombuffer(data, np.uint8)
    job = video_job(MediaBytes(data, b"")).message(folder) | {"sizes": [len(data)]}
    job["work"]["rules"] = asdict(LARGE)
    return run(job, region, loader, RESIZE)


def test_damaged_frames_are_dropped_with_their_times(loader: VideoLoader, tmp_path: Path) -> None:
    """What follows a frame that does not decode keeps its own index, time and pixels."""
    damaged = damage_frames(write_mjpeg(tmp_path / "clip.avi", 24), (8, 15))
    result = clip(loader, damaged, num_frames=6)
    assert plan_of(result) == ((0, 5, 9, 14, 18, 23), (0.0, 0.5, 0.9, 1.4, 1.8, 2.3))
    result = clip(loader, damaged)
    assert plan_of(result) == ((0, 23), (0.0, 2.3))
    assert result.plan is not None
    assert result.plan.dropped_frames == 2
    assert [index_of(frame) for frame in result.array] == [0, 23]


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4"])
def test_a_variable_rate_gives_the_frames_own_times(loader: VideoLoader, tmp_path: Path, name: str) -> None:
    """Not index over rate: a scene that stands still for a second lasts a second."""
    path = write_h264(tmp_path / name, UNEVEN_MS)
    indices, times = plan_of(clip(loader, path, frame_indices=(0, 2, 3, 6)))
    assert indices == (0, 2, 3, 6)
    np.testing.assert_allclose(times, [0.0, 0.2, 1.2, 3.0], atol=2e-3)
    assert list(map(index_of, frames(loader, path, (0, 3, 6, 7)).values())) == [0, 3, 6, 7]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(loader: VideoLoader, tmp_path: Path, degrees: int) -> None:
    """A clip that is to be shown turned is turned, and its size with it."""
    path = turn(write_h264(tmp_path / "clip.mp4", range(0, 400, 100)), degrees)
    (frame,) = frames(loader, path, (1,)).values()
    expected = np.rot90(frame_of(1), -degrees // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 4
    assert clip(loader, path).source_size == expected.shape[:2]


@pytest.mark.parametrize(("name", "size"), [("clip.mkv", (63, 97)), ("clip.avi", (33, 35)), ("clip.mp4", (65, 96))])
def test_odd_sizes_are_whole(loader: VideoLoader, tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    """No row or column is lost or smeared."""
    path = write_odd(tmp_path / name, 4, size)
    (frame,) = frames(loader, path, (2,)).values()
    assert frame.shape == (*size, 3)
    assert np.abs(frame.astype(int) - frame_of(2, *size)).mean() < 6


def test_a_header_without_a_rate_costs_nothing(loader: VideoLoader, tmp_path: Path) -> None:
    """The rate and the times come from the frames themselves."""
    path = forget_rate(write_h264(tmp_path / "clip.mkv", range(0, 2400, 100)))
    result = clip(loader, path, num_frames=5)
    assert result.plan is not None
    assert result.plan.source_fps == pytest.approx(10.0)
    np.testing.assert_allclose(result.plan.timestamps, [0.0, 0.6, 1.2, 1.7, 2.3], atol=2e-3)


def test_far_frames_are_those_that_reading_gives(loader: VideoLoader, tmp_path: Path) -> None:
    """Jumps to key frames save decoding and change nothing."""
    path = write_mjpeg(tmp_path / "clip.avi", 700)
    by_reading = frames(loader, path, range(700))
    by_jumping = frames(loader, path, (3, 350, 699))
    assert len(by_reading) == 700
    for index, frame in by_jumping.items():
        np.testing.assert_array_equal(frame, by_reading[index])


def test_jumps_between_b_frames_hit(loader: VideoLoader, tmp_path: Path) -> None:
    """Frames that are shown in another order than they are stored in are found by when they are shown."""
    path = write_h264(tmp_path / "clip.mp4", range(0, 28_000, 100), key_every=70)
    taken = frames(loader, path, (1, 139, 140, 141, 279))
    assert list(taken) == [1, 139, 140, 141, 279]
    assert [index_of(frame) for frame in taken.values()] == [index % 28 for index in taken]


def test_pictures_for_reference_alone_are_no_frames(tmp_path: Path) -> None:
    """VP8 files hold packets that are never shown: PyAV, which lists packets, leaves them out."""
    if "pyav" not in HERE:
        pytest.skip(str(loaders.missing("pyav")))
    path = write_vp8(tmp_path / "clip.webm", 12, hidden=4)
    pyav = loaders.load("pyav")
    result = clip(pyav, path, num_frames=11)
    assert result.plan is not None
    assert (result.plan.total_frames, result.plan.dropped_frames) == (11, 0)
    assert [index_of(frame) for frame in frames(pyav, path, range(11)).values()] == [0, 1, 2, 3, *range(5, 12)]


def test_fifty_loads_hold_nothing(loader: VideoLoader, tmp_path: Path) -> None:
    """Neither descriptors nor memory grow with the clips that were read."""
    path = write_h264(tmp_path / "clip.mp4", range(0, 2400, 100))
    for _ in range(3):
        clip(loader, path)
    before = resources()
    for _ in range(50):
        clip(loader, path)
    after = resources()
    assert after[0] == before[0]
    assert after[1] - before[1] < 8 << 20


def resources() -> tuple[int, int]:
    """(open descriptors, resident bytes) of this process."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(os.listdir("/proc/self/fd")), resident


@pytest.mark.parametrize("kind", ["empty", "noise", "cut", "sound", "playlist"])
def test_broken_files_are_refused_and_leave_nothing(loader: VideoLoader, tmp_path: Path, kind: str) -> None:
    """One reason for all, and no file of theirs stays."""
    data = {
        "empty": b"\0\0\0\x18ftypmp42",
        "noise": b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(4096),
        "cut": write_h264(tmp_path / "clip.mp4", range(0, 2400, 100)).read_bytes()[:2000],
        "sound": write_sound(tmp_path / "sound.mp4").read_bytes(),
        "playlist": b"ffconcat version 1.0\nfile clip.mp4\n",
    }[kind]
    with pytest.raises(MediaProblem) as caught:
        run_job(loader, data, tmp_path / "job")
    assert (caught.value.reason, caught.value.field) == ("VIDEO_UNREADABLE", "media")
    assert not list((tmp_path / "job").iterdir())


def test_mutants_give_frames_or_the_one_error(loader: VideoLoader, tmp_path: Path) -> None:
    """Whatever stands in a file's bytes, it is a clip or it is not; no other exception comes out."""
    rng = np.random.default_rng(11)
    whole = np.frombuffer(write_h264(tmp_path / "clip.mp4", range(0, 1200, 100)).read_bytes(), np.uint8)
    path, outcomes = tmp_path / "mutant", set()
    for _ in range(25):
        mutant = whole.copy()
        places = rng.integers(0, rng.choice([900, len(whole)]), 8)
        mutant[places] = rng.integers(0, 256, 8)
        path.write_bytes(mutant.tobytes())
        try:
            outcomes.add(clip(loader, path).grid_thw[0] > 0)
        except MediaProblem as problem:
            outcomes.add(problem.reason)
    assert outcomes <= {True, "VIDEO_UNREADABLE", "VIDEO_TOO_LONG", "SAMPLING_INVALID"}


@pytest.mark.slow
async def test_a_cancelled_load_leaves_nothing(loader: VideoLoader, tmp_path: Path) -> None:
    """The process that reads is ended in the middle, its folder removed, and the next clip is read as ever."""
    long = write_mjpeg(tmp_path / "clip.avi", 700, size=(240, 320)).read_bytes()
    short = write_mjpeg(tmp_path / "short.avi", 8).read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pool = MediaPool(1, scratch_dir=scratch, video_loader=loader.name)
    await pool.start()
    (pid,) = pool.pids
    task = asyncio.create_task(pool.process(video_job(MediaBytes(long, b""), VideoOptions(num_frames=700))))
    async with asyncio.timeout(10):
        while not list(scratch.glob("*/job-*/*")):
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    item = await pool.process(video_job(MediaBytes(short, b"")))
    assert item.plan is not None
    assert item.plan.total_frames == 8
    assert pool.pids != [pid]
    assert not list(scratch.glob("*/job-*"))
    await pool.close()
    assert not list(scratch.iterdir())


def test_automatic_takes_the_first_that_is_there() -> None:
    """The order is that of the module; without any, the error names the first one's command."""
    assert loaders.choose("auto", lambda name: True) == "opencv"
    assert loaders.choose("auto", lambda name: name in ("torchcodec", "pyav")) == "pyav"
    with pytest.raises(loaders.LoaderMissingError, match="pip install opencv-python-headless"):
        loaders.choose("auto", lambda name: False)


@pytest.mark.parametrize("name", loaders.ORDER)
def test_a_named_one_that_is_missing_says_how_to_get_it(name: str) -> None:
    """In one line, with the command."""
    with pytest.raises(loaders.LoaderMissingError) as caught:
        loaders.choose(name, lambda name: False)
    text = str(caught.value)
    assert repr(name) in text
    assert "pip install" in text
    assert "\n" not in text


@pytest.mark.slow
async def test_a_pool_does_not_start_without_its_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its package is missing or does not load in the process; nothing is left behind."""
    broken = loaders.Backend("gateway.media.none:None", ("none_of_this_name",), "pip install none")
    monkeypatch.setitem(loaders.BACKENDS, "torchcodec", broken)
    pool = MediaPool(1, scratch_dir=tmp_path, video_loader="torchcodec")
    with pytest.raises(FailedPrecondition, match="pip install none") as caught:
        await pool.start()
    assert caught.value.reason == "VIDEO_LOADER_MISSING"
    # Here it seems to be there; the process itself finds that it is not.
    broken_package(tmp_path / "modules", monkeypatch)
    monkeypatch.setitem(loaders.BACKENDS, "torchcodec", replace(broken, packages=()))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pool = MediaPool(2, scratch_dir=scratch, video_loader="torchcodec")
    with pytest.raises(FailedPrecondition, match="pip install torch torchcodec") as caught:
        await pool.start()
    assert (caught.value.reason, pool.pids, list(scratch.iterdir())) == ("VIDEO_LOADER_MISSING", [], [])


def broken_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a torchcodec before all others that does not find its libraries."""
    folder.mkdir()
    (folder / "torchcodec.py").write_text("raise RuntimeError('libavutil is missing')\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.slow
def test_only_what_can_be_imported_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that does not load is not named to callers; the one in use is not named twice."""
    broken_package(tmp_path / "modules", monkeypatch)
    others = loaders.find_others("opencv")
    assert "pyav" in others
    assert not {"opencv", "torchcodec"} & set(others)


def test_decord_is_refused_by_name() -> None:
    """With what to take instead, since it keeps to the contract on some days alone."""
    with pytest.raises(loaders.LoaderMissingError, match="name pyav"):
        loaders.choose("decord", lambda name: True)


def test_a_rate_is_believed_until_the_times_contradict_it() -> None:
    """A container's clock rounds; a clip that lasts longer than its header says has another rate."""
    assert steady_fps(29.97, 299, 9.977) == 29.97
    assert steady_fps(10.0, 7, 3.1) == pytest.approx(7 / 3.1)
    assert steady_fps(None, 10, 1.0) == 10.0
    assert steady_fps(None, 0, 0.0) is None
