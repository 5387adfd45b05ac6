"""Tests of protos/tessera/grpc_options.py: behaviour, for grpc ignores keys that it does not know."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tessera import grpc_options
from tessera.grpc_options import channel_options, server_options

LIMIT = 64 << 10
METHOD = "/tests.Echo/Echo"
STREAM = "/tests.Echo/Wait"


@asynccontextmanager
async def serving(max_streams: int = 100) -> AsyncIterator[tuple[int, asyncio.Semaphore]]:
    """An echo server with our options; its port, and a semaphore that lets waiting streams go."""
    gate = asyncio.Semaphore(0)

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    async def wait(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"started"
        await gate.acquire()

    server = grpc.aio.server(options=server_options(LIMIT, max_streams))
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Wait": grpc.unary_stream_rpc_method_handler(wait),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tests.Echo", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port, gate
    await server.stop(0)


def channel(port: int) -> grpc.aio.Channel:
    """A channel with our options."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options())


async def test_a_message_above_the_limit_is_refused() -> None:
    """A message at the limit passes; one above it is RESOURCE_EXHAUSTED and never reaches a handler."""
    async with serving() as (port, _), channel(port) as ours:
        echo = ours.unary_unary(METHOD)
        assert len(await echo(bytes(LIMIT))) == LIMIT
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(bytes(LIMIT + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_answers_may_be_larger_than_grpcs_default() -> None:
    """A channel takes answers above grpc's own four megabytes."""
    size = 5 << 20

    async def large(request: bytes, context: Any) -> bytes:
        return bytes(size)

    server = grpc.aio.server(options=server_options(LIMIT))
    handler = grpc.method_handlers_generic_handler("tests.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(large)})
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel(port) as ours:
        assert len(await ours.unary_unary(METHOD)(b"")) == size
    await server.stop(0)


async def test_two_servers_never_share_a_port() -> None:
    """A second server on a taken port fails at its start, not in silence."""
    async with serving() as (port, _):
        second = grpc.aio.server(options=server_options(LIMIT))
        with pytest.raises(RuntimeError, match="bind"):
            second.add_insecure_port(f"127.0.0.1:{port}")


async def test_streams_of_one_connection_are_bounded() -> None:
    """Calls above the limit wait on the client's side until one ends: floods cost the server nothing."""
    async with serving(max_streams=2) as (port, gate), channel(port) as ours:
        calls = [ours.unary_stream(STREAM)(b"") for _ in range(3)]
        # Which two of them get a stream is the transport's choice.
        reads = {asyncio.create_task(call.read()) for call in calls}
        started: set[asyncio.Task[bytes]] = set()
        while len(started) < 2:
            done, reads = await asyncio.wait(reads, timeout=2, return_when=asyncio.FIRST_COMPLETED)
            assert done, "two calls get a stream"
            started |= done
        done, _ = await asyncio.wait(reads, timeout=0.05)
        assert not done
        gate.release()
        (third,) = reads
        assert await asyncio.wait_for(third, 2) == b"started"
        assert [read.result() for read in started] == [b"started"] * 2
        for call in calls:
            call.cancel()


async def test_large_metadata_is_refused() -> None:
    """Metadata above the hard limit ends the call; the server lives on."""
    async with serving() as (port, _), channel(port) as ours:
        echo = ours.unary_unary(METHOD)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echo(b"", metadata=(("x-large", "a" * 20_000),))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await echo(b"again") == b"again"


@pytest.mark.slow
def test_idle_connections_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that pings while it has nothing to ask is not thrown out by the server."""
    # Ten times faster: grpc pings once a second at most. The server's own pings would keep the client's away.
    monkeypatch.setattr(grpc_options, "KEEPALIVE_MS", 1000)
    monkeypatch.setattr(grpc_options, "PING_TIMEOUT_MS", 500)
    silent = [pair for pair in server_options(LIMIT) if pair[0] != "grpc.keepalive_time_ms"]
    server = grpc.server(ThreadPoolExecutor(1), options=silent)
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tests.Echo", {"Echo": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=channel_options()) as ours:
        assert ours.unary_unary(METHOD)(b"x") == b"x"
        ours.subscribe(states.append)
        time.sleep(4)  # the fourth ping would be the one too many
    server.stop(0).wait()
    assert set(states) == {grpc.ChannelConnectivity.READY}
