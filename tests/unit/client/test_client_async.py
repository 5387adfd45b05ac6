"""The async client: the same calls, and cancellation in asyncio's way."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tessera.errors import ResourceExhausted
from tessera.v1 import inference_service_pb2 as pb
from tessera_client import AsyncClient, Image, Item, errors
from tests.fakes.inference import FakeInference, FakeServer


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.address, timeout=10) as client:
        yield client


async def until(condition) -> None:
    """Wait for the server's thread."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_calls_return_what_the_sync_client_returns(aclient: AsyncClient, client, picture) -> None:
    """Both clients decode alike."""
    assert (await aclient.chat("hi", request_id="a")) == client.chat("hi", request_id="a")
    assert (await aclient.generate([1, 2], request_id="a")) == client.generate([1, 2], request_id="a")
    parts = [Image(picture), "What?"]
    assert (await aclient.prepare(parts, request_id="a")) == client.prepare(parts, request_id="a")
    assert (await aclient.prepare_prompt("x", request_id="a")).token_ids == tuple(range(10))
    assert (await aclient.list_models()) == client.list_models()
    assert (await aclient.get_model()) == client.get_model()


async def test_stream_yields_deltas(aclient: AsyncClient) -> None:
    """Deltas come one by one and add up."""
    stream = aclient.stream_chat("hi")
    assert [delta.text async for delta in stream] == ["a ", "red ", "circle."]
    assert stream.done
    assert (await stream.result()).text == "a red circle."
    assert (await aclient.stream_generate([1, 2]).result()).prompt.token_ids == (1, 2)


async def test_leaving_the_loop_cancels_the_request(aclient: AsyncClient, service: FakeInference) -> None:
    """`break` ends the request on the server."""
    service.hold.add("StreamChat")
    async for _ in aclient.stream_chat("hi"):
        break
    await until(lambda: service.cancelled == ["StreamChat"])


async def test_closing_ends_the_loop_without_an_error(aclient: AsyncClient, service: FakeInference) -> None:
    """`close()` from another task ends the loop; the task that loops goes on."""
    service.hold.add("StreamChat")
    stream = aclient.stream_chat("hi")
    asyncio.get_running_loop().call_later(0.05, stream.close)
    assert [delta.text async for delta in stream] == ["a "]
    await until(lambda: service.cancelled == ["StreamChat"])


async def test_cancelling_the_task_cancels_the_request(aclient: AsyncClient, service: FakeInference) -> None:
    """A cancelled task stays cancelled, and its request ends."""
    service.hold.add("StreamChat")
    task = asyncio.create_task(aclient.stream_chat("hi").result())
    await until(lambda: any(method == "StreamChat" for method, *_ in service.requests))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: service.cancelled == ["StreamChat"])


async def test_errors_are_typed(aclient: AsyncClient, service: FakeInference) -> None:
    """Details are decoded for asyncio's errors too, unary and streamed."""
    service.fail["Chat"] = service.fail["StreamChat:1"] = ResourceExhausted("Busy.", reason="FULL", retry_after_s=3)
    with pytest.raises(errors.ResourceExhausted) as caught:
        await aclient.chat("hi")
    assert (caught.value.reason, caught.value.retry_after) == ("FULL", 3)
    with pytest.raises(errors.ResourceExhausted):
        await aclient.stream_chat("hi").result()


async def test_no_server_is_told_by_address() -> None:
    """A connection that is refused names the address."""
    async with AsyncClient("127.0.0.1:1", timeout=2) as client:
        with pytest.raises(errors.ServerUnreachable, match=r"127\.0\.0\.1:1"):
            await client.list_models()


async def test_deadline(aclient: AsyncClient, service: FakeInference) -> None:
    """A call that takes longer than its timeout is a TimeoutError."""
    service.hold.add("Chat")
    with pytest.raises(TimeoutError):
        await aclient.chat("hi", timeout=0.05)


async def test_uploads_and_waiting(aclient: AsyncClient, service: FakeInference) -> None:
    """Uploads go in chunks and the wait ends at readiness, as in the sync client."""
    import numpy as np

    progress: list = []
    result = await aclient.upload(b"x" * (3 << 20), on_upload=progress.append)
    assert service.uploads[result.media_id] == b"x" * (3 << 20)
    assert [p.sent_bytes >> 20 for p in progress] == [1, 2, 3]
    item = Item("image", "pixels_u8", np.zeros((1, 32, 32, 3), np.uint8), grid_thw=(1, 2, 2))
    assert (await aclient.upload_item(item)).content_hash in service.uploads
    service.states = [(pb.MODEL_STATE_LOADING, 0.5)]
    assert (await aclient.wait_until_ready(poll_s=0.001)).ready
