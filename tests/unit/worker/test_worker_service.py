"""The worker's three RPCs, over a real channel, with the fake model behind them."""

import asyncio
import math

import grpc
import pytest
import structlog

from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from tests.unit.worker.engine.fakes import PLACEHOLDER, VOCAB_SIZE, greedy_tokens, make_item, place
from tests.unit.worker.engine.test_engine_steps import prompt_of, with_items
from tests.unit.worker.serving import TIMEOUT_S, Gateway, header_of, serving, submit_of
from worker.submission import SubmitReader


def pictured(number=1, length=12):
    """Return an item, where it stands, and a prompt round it."""
    item = make_item(number, 4)
    placed = place(item, (2, 4))
    return item, placed, with_items(prompt_of(length, number), placed)


async def test_one_message_a_step_for_all_sequences():
    """Eight sequences that run together come back in one message a step, with the load; each ends with its reason."""
    async with serving() as served:
        served.model.gate.clear()
        gateway = Gateway(served)
        await gateway.send(*[submit_of(f"r{n}", prompt_of(4, n)) for n in range(8)])
        served.model.gate.set()
        await gateway.until(*[(f"r{n}", 0) for n in range(8)])
        for n in range(8):
            assert gateway.tokens[f"r{n}", 0] == greedy_tokens(prompt_of(4, n))
            assert gateway.ends[f"r{n}", 0].finish_reason == types.FINISH_REASON_LENGTH
        steps = [message.step for message in gateway.messages]
        assert steps == sorted(set(steps))
        assert max(len(message.updates) for message in gateway.messages) >= 7
        assert gateway.messages[-1].load.used_blocks == 0
        assert gateway.messages[-1].load.total_blocks == 64


async def test_two_gateways_get_their_own_news():
    """Equal request ids of two gateways are two requests; each hears of its own."""
    async with serving() as served:
        first, second = Gateway(served), Gateway(served)
        await first.send(submit_of("a", prompt_of(5)))
        await second.send(submit_of("a", prompt_of(9, 1), epoch=4))
        await asyncio.gather(first.until(("a", 0)), second.until(("a", 0)))
        assert first.tokens["a", 0] == greedy_tokens(prompt_of(5))
        assert second.tokens["a", 0] == greedy_tokens(prompt_of(9, 1))
        assert (first.ends["a", 0].epoch, second.ends["a", 0].epoch) == (0, 4)


async def test_logprobs_choices_and_matched_stop_tokens():
    """Logprobs, choices, the stop token that matched and the cached prompt tokens arrive."""
    prompt = prompt_of(10)
    tokens = greedy_tokens(prompt)
    async with serving() as served:
        gateway = Gateway(served)
        asked = {"logprobs": True, "top_logprobs": 3, "stop_token_ids": [tokens[2]], "n": 2}
        await gateway.send(submit_of("a", prompt, sampling=asked))
        await gateway.until(("a", 0), ("a", 1))
        for choice in range(2):
            end = gateway.ends["a", choice]
            assert end.finish_reason == types.FINISH_REASON_STOP
            assert end.matched_stop_token_id == tokens[2]
            assert end.logprobs[0].top[0].token_id == end.logprobs[0].chosen.token_id == tokens[2]
            assert math.isclose(end.logprobs[0].top[0].logprob, end.logprobs[0].chosen.logprob)
        await gateway.send(submit_of("b", prompt))
        await gateway.until(("b", 0))
        assert [u.cached_tokens for m in gateway.messages for u in m.updates if u.cached_tokens] == [8]


async def test_items_before_and_after_the_submission():
    """An item may come before or after; what is held is not sent again; what is missing is asked for."""
    item, placed, prompt = pictured()
    async with serving() as served:
        gateway = Gateway(served)
        await gateway.send(submit_of("late", prompt, [(item, placed)]))
        while not gateway.messages or not gateway.messages[-1].need_items:
            await gateway.read()
        need = gateway.messages[-1].need_items[0]
        assert (need.request_id, need.content_hash) == ("late", item.content_hash)
        assert [answer.status for answer in await served.stage(item)] == [
            pb.STAGE_STATUS_SEND,
            pb.STAGE_STATUS_STORED,
        ]
        await gateway.until(("late", 0))
        assert [answer.status for answer in await served.stage(item)] == [pb.STAGE_STATUS_HAVE]
        await gateway.send(submit_of("again", prompt, [(item, placed)]))
        await gateway.until(("again", 0))
        expected = greedy_tokens(prompt, [(item, placed)])
        assert gateway.tokens["late", 0] == gateway.tokens["again", 0] == expected


async def test_a_wrong_item_is_rejected_and_the_next_one_taken():
    """Bytes without the right hash are REJECTED with code, reason and field; the stream goes on."""
    item, other = make_item(1), make_item(2)
    async with serving() as served:
        answers = await served.stage(item, data=other.array.tobytes())
        assert answers[1].status == pb.STAGE_STATUS_REJECTED
        assert (answers[1].error.code, answers[1].error.reason) == (3, "HASH_MISMATCH")
        assert answers[1].error.field == "content_hash"
        assert served.engine.load().staged_bytes == 0
        assert (await served.stage(item))[1].status == pb.STAGE_STATUS_STORED


async def test_chunks_need_headers():
    """A chunk that nobody announced ends the call with INVALID_ARGUMENT."""
    async with serving() as served:
        call = served.stub.StageItem(timeout=TIMEOUT_S)
        await call.write(pb.StageItemRequest(chunk=b"x"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_upload_that_breaks_off_holds_nothing():
    """When a gateway goes in the middle of an item, the memory set aside for it comes back."""
    async with serving() as served:
        call = served.stub.StageItem(timeout=TIMEOUT_S)
        await call.write(pb.StageItemRequest(header=pb.StageItemHeader()))
        assert (await call.read()).status == pb.STAGE_STATUS_REJECTED
        item = make_item(1)
        await call.write(pb.StageItemRequest(header=header_of(item)))
        assert (await call.read()).status == pb.STAGE_STATUS_SEND
        assert served.engine.items.used_bytes == item.size_bytes
        call.cancel()
        async with asyncio.timeout(TIMEOUT_S):
            while served.engine.items.used_bytes:
                await served.stub.Describe(pb.DescribeRequest())


async def test_refusals_are_news_of_the_request():
    """A wrong submission is that request's error, with code, reason and field; others on the stream go on."""
    async with serving() as served:
        gateway = Gateway(served)
        await gateway.send(
            submit_of("wrong", [VOCAB_SIZE]),
            submit_of("long", prompt_of(60)),
            submit_of("good", prompt_of(5)),
        )
        await gateway.until(("wrong", 0), ("long", 0), ("good", 0))
        wrong, long = gateway.ends["wrong", 0].error, gateway.ends["long", 0].error
        assert (wrong.code, wrong.reason, wrong.field) == (3, "TOKEN_OUT_OF_VOCABULARY", "prompt_token_ids[0]")
        assert (long.code, long.reason, long.field) == (3, "CONTEXT_EXCEEDED", "sampling.max_tokens")
        assert gateway.tokens["good", 0] == greedy_tokens(prompt_of(5))


async def test_our_own_mistake_in_reading_a_submission():
    """An unexpected exception while a submission is read is that request's INTERNAL; the stream goes on."""
    async with serving() as served:
        gateway = Gateway(served)
        right = SubmitReader.read

        def read(self, submit, owner, now_s):
            if submit.request_id == "odd":
                raise KeyError("secret")
            return right(self, submit, owner, now_s)

        with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as logs:
            patch.setattr(SubmitReader, "read", read)
            await gateway.send(submit_of("odd", prompt_of(5)), submit_of("good", prompt_of(5)))
            await gateway.until(("odd", 0), ("good", 0))
        error = gateway.ends["odd", 0].error
        assert (error.code, "secret" in error.message) == (13, False)
        assert any(entry["event"] == "submit_failed" for entry in logs)


async def test_a_message_without_content_ends_the_stream():
    """An empty command is INVALID_ARGUMENT for the stream, and what ran is dropped."""
    async with serving() as served:
        gateway = Gateway(served)
        served.model.gate.clear()
        await gateway.send(submit_of("a", prompt_of(5)))
        await gateway.call.write(pb.ExecuteRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.until(("never", 0))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        served.model.gate.set()
        await served.idle()


async def test_cancelling_frees_and_says_nothing_more():
    """A cancelled choice, and then request, is not heard of again; the others go on and all is freed."""
    async with serving(num_blocks=200) as served:
        gateway = Gateway(served)
        served.model.gate.clear()
        await gateway.send(submit_of("a", prompt_of(5), sampling={"n": 2, "max_tokens": 50}))
        await gateway.send(submit_of("b", prompt_of(6), sampling={"max_tokens": 50}))
        await gateway.send(pb.Cancel(request_id="a", choice=1), pb.Cancel(request_id="nobody"))
        await gateway.send(pb.Cancel(request_id="b", epoch=7))
        served.model.gate.set()
        await gateway.until(("a", 0), ("b", 0))
        assert ("a", 1) not in gateway.ends
        assert len(gateway.tokens["b", 0]) == 50
        await served.idle()


async def test_losing_a_gateway_frees_its_sequences():
    """A gateway that vanishes leaves nothing behind."""
    item, placed, prompt = pictured()
    async with serving() as served:
        await served.stage(item)
        gateway = Gateway(served)
        served.model.gate.clear()
        await gateway.send(submit_of("a", prompt, [(item, placed)], sampling={"max_tokens": 40, "n": 3}))
        await gateway.send(submit_of("waits", with_items(prompt_of(12), place(make_item(9), (2, 4)))))
        gateway.call.cancel()
        served.model.gate.set()
        load = await served.idle()
        assert load.free_blocks + load.cached_blocks == load.total_blocks


async def test_deadlines():
    """A request whose time has passed ends with DEADLINE_EXCEEDED although nothing else happens."""
    item, placed, prompt = pictured()
    async with serving() as served:
        gateway = Gateway(served)
        await gateway.send(submit_of("a", prompt, [(item, placed)], timeout_ms=30))
        await gateway.until(("a", 0))
        error = gateway.ends["a", 0].error
        assert (error.code, error.reason) == (4, "DEADLINE_EXCEEDED")


async def test_an_exception_in_a_forward_is_internal_and_generic():
    """A failing forward ends its request with a generic INTERNAL; the log has the traceback, and the engine goes on."""
    async with serving() as served:
        served.model.broken_tokens = {PLACEHOLDER - 1}
        gateway = Gateway(served)
        with structlog.testing.capture_logs() as logs:
            await gateway.send(submit_of("bad", [PLACEHOLDER - 1]), submit_of("good", prompt_of(5)))
            await gateway.until(("bad", 0), ("good", 0))
        error = gateway.ends["bad", 0].error
        assert (error.code, error.reason) == (13, "INTERNAL")
        assert "broken" not in error.message
        assert gateway.tokens["good", 0] == greedy_tokens(prompt_of(5))
        assert any(entry["event"] == "sequence_failed" for entry in logs)


async def test_an_idle_engine_reports_its_load():
    """Without any request, the engine's own thread sends a load report each heartbeat."""
    async with serving(heartbeat_s=0.01) as served:
        gateway = Gateway(served)
        messages = [await gateway.read() for _ in range(3)]
        assert all(not message.updates for message in messages)
        assert messages[2].step > messages[1].step > messages[0].step


async def test_half_close_ends_the_stream_after_its_last_choice():
    """A gateway that has said all it will gets its answers, and then the stream ends well."""
    async with serving() as served:
        gateway = Gateway(served)
        await gateway.send(submit_of("a", prompt_of(5)))
        await gateway.call.done_writing()
        await gateway.until(("a", 0))
        assert await gateway.call.read() is grpc.aio.EOF
        assert await gateway.call.code() is grpc.StatusCode.OK


async def test_not_ready_and_draining():
    """Before it can answer, streams are UNAVAILABLE; when it drains, so are new requests, and running ones end."""
    async with serving() as served:
        gateway = Gateway(served)
        served.model.gate.clear()
        await gateway.send(submit_of("a", prompt_of(5)))
        while not served.bridge.num_open:
            await served.stub.Describe(pb.DescribeRequest())
        served.status.report("draining", 0.0)
        await gateway.send(submit_of("b", prompt_of(5)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Gateway(served).read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError) as staged:
            await served.stage(make_item(1))
        assert staged.value.code() is grpc.StatusCode.UNAVAILABLE
        served.model.gate.set()
        await gateway.until(("a", 0), ("b", 0))
        assert gateway.ends["b", 0].error.code == 14
        assert gateway.tokens["a", 0] == greedy_tokens(prompt_of(5))
        await served.bridge.quiet()
        assert (await served.stub.Describe(pb.DescribeRequest())).state == pb.WORKER_STATE_DRAINING
