"""The bridge: news are merged for slow readers, failures of the engine do not pass in silence."""

import asyncio
import dataclasses

import pytest
import structlog

from tessera.errors import Unavailable
from tests.unit.worker.engine.fakes import Harness
from tests.unit.worker.engine.test_engine_steps import prompt_of
from worker.bridge import MAX_FAILED_STEPS, EngineBridge, GatewayStream
from worker.engine.output import FinishReason, SequenceUpdate
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup

LOAD = Harness().engine.load()


def update(token, **fields):
    return SequenceUpdate(1, "a", 0, 0, [token], **fields)


async def test_a_slow_reader_gets_several_steps_at_once():
    """What comes while a gateway does not read is one message: all tokens in order, the last step, the last load."""
    stream = GatewayStream(1)
    for step in range(1, 4):
        stream.push(step, dataclasses.replace(LOAD, running=step), [update(step)], [])
    news = await anext(stream.news())
    assert (news.step, news.load.running) == (3, 3)
    assert [one.token_ids for one in news.updates] == [[1], [2], [3]]


async def test_news_come_before_the_end():
    """A stream that ends with an error first hands out what it still holds."""
    stream = GatewayStream(1)
    stream.push(1, LOAD, [update(5)], [])
    stream.end(Unavailable("gone"))
    news = stream.news()
    assert (await anext(news)).step == 1
    stream.push(2, LOAD, [update(6)], [])
    assert (await anext(news)).step == 2
    with pytest.raises(Unavailable):
        await anext(news)


async def test_an_end_waits_for_open_choices():
    """An end without an error comes after the last choice's end."""
    stream = GatewayStream(1)
    stream.open_choices = {("a", 0, 0)}
    stream.end()
    reader = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    assert not reader.done()
    stream.push(1, LOAD, [update(5, finish_reason=FinishReason.STOP)], [])
    assert [news.step for news in await reader] == [1]


async def collect(stream):
    return [news async for news in stream.news()]


async def test_an_engine_that_cannot_be_built():
    """What the building of the engine raises reaches `on_failed`, on the loop."""
    failed = asyncio.get_running_loop().create_future()

    def build():
        raise ValueError("no such checkpoint")

    EngineBridge(build, lambda engine: None, failed.set_result).start()
    assert "no such checkpoint" in str(await asyncio.wait_for(failed, 10))


async def test_an_engine_that_fails_every_step_gives_up():
    """Exceptions that concern all sequences fail them as INTERNAL; after several in a row the worker gives up."""
    engine = Harness().engine
    calls = []

    def fail(copies):
        calls.append(copies)
        raise RuntimeError("device lost")

    engine.runner.copy_blocks = fail  # type: ignore[method-assign]
    failed: asyncio.Future = asyncio.get_running_loop().create_future()
    ready = asyncio.Event()
    bridge = EngineBridge(lambda: engine, lambda _: ready.set(), failed.set_result, 60.0)
    bridge.start()
    await ready.wait()
    stream = bridge.open_stream()
    news = stream.news()
    with structlog.testing.capture_logs():
        for number in range(MAX_FAILED_STEPS):
            group = SequenceGroup(f"r{number}", tuple(prompt_of(5)), SamplingParams(max_tokens=3), owner=stream.owner)
            bridge.submit(stream, group)
            if number < MAX_FAILED_STEPS - 1:
                told = await anext(news)
                assert [one.failure.reason for one in told.updates] == ["INTERNAL"]
        error = await asyncio.wait_for(failed, 10)
    assert "device lost" in str(error)
    assert len(calls) == MAX_FAILED_STEPS
    await news.aclose()


async def test_an_unexpected_error_at_the_door():
    """An exception while a request is taken fails that request alone."""
    engine = Harness().engine

    def positions(group):
        raise KeyError("odd")

    ready = asyncio.Event()
    bridge = EngineBridge(lambda: engine, lambda _: ready.set(), lambda error: None, 60.0)
    bridge.start()
    await ready.wait()
    engine.runner.positions, right = positions, engine.runner.positions  # type: ignore[method-assign]
    stream = bridge.open_stream()
    news = stream.news()
    group = SequenceGroup("a", tuple(prompt_of(5)), SamplingParams(max_tokens=3), owner=stream.owner)
    with structlog.testing.capture_logs() as logs:
        bridge.submit(stream, group)
        told = await anext(news)
    assert told.updates[0].failure.reason == "INTERNAL"
    assert [entry["event"] for entry in logs] == ["add_failed"]
    engine.runner.positions = right  # type: ignore[method-assign]
    bridge.submit(stream, group)
    tokens = []
    while stream.open_choices or not tokens:
        tokens += [token for one in (await anext(news)).updates for token in one.token_ids]
    assert len(tokens) == 3
    await bridge.stop()
