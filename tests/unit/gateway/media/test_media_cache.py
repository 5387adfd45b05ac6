"""The processor cache: by source and the modality's own arguments, one job for all who wait."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from gateway.media.item import ProcessedItem
from gateway.media.options import ImageOptions, VideoOptions
from gateway.media.pool import MediaJob
from gateway.media.source import MediaBytes
from gateway.processor.cache import ProcessorCache, cache_key
from tessera.errors import InvalidArgument
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tests.unit.gateway.media.media_fixtures import RULES, image_job, video_job


class Work:
    """Processes jobs when it is told to; counts them."""

    def __init__(self, size: int = 32) -> None:
        self.jobs: list[MediaJob] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.cancelled = 0
        self._size = size

    async def __call__(self, job: MediaJob) -> ProcessedItem:
        """A square of pixels."""
        self.jobs.append(job)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if job.media.data == b"bad":
            raise InvalidArgument("no", reason="IMAGE_UNREADABLE")
        array = np.zeros((1, self._size, self._size, 3), np.uint8)
        item = MultimodalItem(Modality.IMAGE, PayloadKind.PIXELS_U8, job.media.sha256, "U8", array, grid_thw=(1, 2, 2))
        return ProcessedItem(item, (1, 1), 1, 2)


def job(name: bytes) -> MediaJob:
    """A picture of that name."""
    return image_job(name, sha256=name)


async def test_of_three_pictures_only_the_new_one_is_processed() -> None:
    """Hits and misses are counted."""
    cache, work = ProcessorCache(1 << 20), Work()
    for name in (b"a", b"b"):
        assert (await cache.get_or_process(job(name), work))[1] is False
    hits = [(await cache.get_or_process(job(name), work))[1] for name in (b"a", b"c", b"b")]
    assert hits == [True, False, True]
    assert ([done.media.data for done in work.jobs], cache.hits, cache.misses) == ([b"a", b"b", b"c"], 2, 3)


def test_a_key_holds_the_modality_s_own_arguments_alone() -> None:
    """Video options leave picture entries valid; resolved budgets count, not how they were spelled."""
    default = cache_key(job(b"a"))
    spelled = image_job(b"a", ImageOptions(max_pixels=RULES.image_max_pixels), sha256=b"a")
    assert cache_key(spelled) == default
    assert cache_key(image_job(b"a", ImageOptions(max_pixels=40_000), sha256=b"a")) != default
    other_clips = replace(job(b"a"), rules=replace(RULES, fps=1.0, video_max_pixels=99_999))
    assert cache_key(other_clips) == default
    clip = MediaBytes(b"a", b"a")
    keys = {cache_key(video_job(clip)), cache_key(video_job(clip, VideoOptions(fps=1.0))), default}
    keys.add(cache_key(video_job(replace(clip, source_fps=3.0))))
    keys.add(cache_key(video_job(replace(clip, timestamps=(1.0,)))))
    assert len(keys) == 5


async def test_a_wrong_option_is_an_error_not_a_miss() -> None:
    """It never reaches the pool."""
    work = Work()
    with pytest.raises(InvalidArgument):
        await ProcessorCache(1 << 20).get_or_process(image_job(b"a", ImageOptions(min_pixels=-1)), work)
    assert not work.jobs


async def test_the_byte_budget_drops_the_least_recently_used() -> None:
    """What was used last stays; what is larger than the whole budget is not kept."""
    cache, work = ProcessorCache(2 * (32 * 32 * 3 + 2048)), Work()
    for name in (b"a", b"b", b"a", b"c"):
        await cache.get_or_process(job(name), work)
    assert (await cache.get_or_process(job(b"a"), work))[1] is True
    assert (await cache.get_or_process(job(b"b"), work))[1] is False
    assert cache.size_bytes <= 2 * (32 * 32 * 3 + 2048)
    small = ProcessorCache(100)
    await small.get_or_process(job(b"a"), work)
    assert len(small) == small.size_bytes == 0


async def test_switched_off_it_keeps_and_shares_nothing() -> None:
    """Every call is a job of its own."""
    cache, work = ProcessorCache(0), Work()
    results = await asyncio.gather(*(cache.get_or_process(job(b"a"), work) for _ in range(3)))
    assert ([hit for _, hit in results], len(work.jobs), cache.hits) == ([False] * 3, 3, 0)


async def test_concurrent_misses_share_one_job() -> None:
    """The second caller waits for the first one's work."""
    cache, work = ProcessorCache(1 << 20), Work()
    results = await asyncio.gather(*(cache.get_or_process(job(b"a"), work) for _ in range(3)))
    assert ([hit for _, hit in results], len(work.jobs)) == ([False, True, True], 1)


async def test_a_failure_reaches_all_and_is_not_kept() -> None:
    """The next call tries again."""
    cache, work = ProcessorCache(1 << 20), Work()
    calls = [cache.get_or_process(job(b"bad"), work) for _ in range(2)]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(failure) for failure in failures] == [InvalidArgument] * 2
    with pytest.raises(InvalidArgument):
        await cache.get_or_process(job(b"bad"), work)
    assert len(work.jobs) == 2


async def test_a_job_is_cancelled_when_its_last_caller_leaves() -> None:
    """One caller's end is not another's; and who comes after the last starts anew."""
    cache, work = ProcessorCache(1 << 20), Work()
    work.gate.clear()
    first, second = (asyncio.create_task(cache.get_or_process(job(b"a"), work)) for _ in range(2))
    await work.started.wait()
    first.cancel()
    await asyncio.wait([first])
    assert work.cancelled == 0
    second.cancel()
    third = asyncio.create_task(cache.get_or_process(job(b"a"), work))
    await asyncio.wait([second])
    work.gate.set()
    assert (await third)[1] in (False, True)
    assert (work.cancelled, len(work.jobs)) in ((1, 2), (0, 1))
