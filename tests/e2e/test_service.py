"""What a client sees beside its answer: ids, models, health, reflection, text in whole characters, one line of log."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import SERVING, Flags, Pair, Pairs
from tests.parity.cases import SMALL, Case, chat_request, user

SECRET = "a secret that nobody may read in a log"
ASK = Case("ask", (user(SMALL, SECRET),))


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair."""
    return pairs.get(Flags(tiny("5.x")))


def test_the_callers_request_id_is_echoed(pair: Pair) -> None:
    """`x-request-id` comes back in the answer, in every message of a stream and in the initial metadata."""
    metadata = (("x-request-id", "my-id.1"),)
    response, call = pair.stub.Chat.with_call(chat_request(ASK, max_tokens=1), metadata=metadata)
    assert response.request_id == "my-id.1"
    assert dict(call.initial_metadata())["x-request-id"] == "my-id.1"
    stream = pair.stub.StreamChat(chat_request(ASK, max_tokens=5), metadata=metadata)
    assert {message.request_id for message in stream} == {"my-id.1"}


@pytest.mark.parametrize("asked", ["", "a b", "x" * 129])
def test_a_request_id_that_cannot_be_is_replaced(pair: Pair, asked: str) -> None:
    """An id that is empty, too long or has blanks is replaced by one of the gateway's."""
    response = pair.stub.Chat(chat_request(ASK, max_tokens=1), metadata=(("x-request-id", asked),))
    assert response.request_id not in ("", asked)


def test_one_id_for_many_requests(pair: Pair) -> None:
    """Requests that share an id run side by side and are not mixed up."""
    cases = [Case(f"case{i}", (user(f"Describe image number {i}."),)) for i in range(6)]
    alone = [list(pair.stub.Chat(chat_request(case)).choices[0].token_ids) for case in cases]

    def ask(case: Case) -> list[int]:
        response = pair.stub.Chat(chat_request(case), metadata=(("x-request-id", "same"),))
        return list(response.choices[0].token_ids)

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, cases)) == alone


def test_the_log_has_one_line_a_request_and_no_content(pair: Pair) -> None:
    """A request is one line with its id, outcome and counts; what was said and shown is not in any log."""
    pair.stub.Chat(chat_request(ASK, max_tokens=3), metadata=(("x-request-id", "logged"),))
    lines = [e for e in pair.gateway.events() if e["event"] == "request" and e.get("request_id") == "logged"]
    assert [(line["method"], line["outcome"], line["completion_tokens"]) for line in lines] == [("Chat", "OK", 3)]
    for program in (pair.gateway, *pair.workers):
        assert SECRET not in program.log.read_text()


def test_models_are_listed_and_described(pair: Pair) -> None:
    """ListModels and GetModel say what is served, with limits, defaults and what runs it."""
    listed = pair.stub.ListModels(pb.ListModelsRequest()).models
    model = pair.stub.GetModel(pb.GetModelRequest(model="tiny")).model
    assert [each.name for each in listed] == [model.name] == ["tiny"]
    assert (model.architecture, model.state) == ("Qwen3VLForConditionalGeneration", pb.MODEL_STATE_READY)
    assert (model.max_model_len, model.vocab_size) == (4096, 640)
    assert list(model.eos_token_ids) == [639]
    assert list(model.modalities) == [types.MODALITY_IMAGE, types.MODALITY_VIDEO]
    assert model.resize_backend in ("native", "pillow")
    assert model.video_loaders[0] == "opencv"
    assert len(model.fingerprint) == 64
    assert model.limits.max_inline_bytes == 32 << 20
    options = model.default_media_options
    assert (options.image.min_pixels, options.image.max_pixels) == (64 * 64, 160 * 160)
    assert (options.video.min_pixels, options.video.max_pixels) == (4 * 64 * 64, 16 * 96 * 96)
    assert (options.video.fps, options.video.min_frames) == (2.0, 4)
    (worker,) = model.workers
    assert (worker.device, worker.dtype) == ("cpu", "float32")
    assert worker.ops
    assert worker.address == pair.workers[0].address


def test_the_name_may_be_left_out(pair: Pair) -> None:
    """An empty name means the only model; its name is in the answer."""
    for name in ("", "tiny"):
        request = chat_request(ASK, max_tokens=1)
        request.model = name
        assert pair.stub.Chat(request).model == "tiny"


@pytest.mark.parametrize("service", ["", "tessera.v1.InferenceService"])
def test_health_of_the_gateway(pair: Pair, service: str) -> None:
    """The standard health service answers for the server and for its service, by Check and by Watch."""
    stub = health_pb2_grpc.HealthStub(pair.gateway.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert stub.Check(request).status == SERVING
    watch = stub.Watch(request)
    assert next(watch).status == SERVING
    watch.cancel()


def test_health_of_an_unknown_service(pair: Pair) -> None:
    """A service that is not there is NOT_FOUND, as the health protocol says."""
    with pytest.raises(grpc.RpcError) as error:
        health_pb2_grpc.HealthStub(pair.gateway.channel).Check(health_pb2.HealthCheckRequest(service="other"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_services(pair: Pair) -> None:
    """A tool that knows nothing finds the services and their descriptors."""
    stub = reflection_pb2_grpc.ServerReflectionStub(pair.gateway.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tessera.v1.InferenceService"),
    ]
    services, described = list(stub.ServerReflectionInfo(iter(asked)))
    names = {service.name for service in services.list_services_response.service}
    assert {"tessera.v1.InferenceService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


def test_text_comes_in_whole_characters(pair: Pair, tiny: Callable[[str], Path]) -> None:
    """Deltas put together are the tokenizer's own decoding, whatever bytes the tokens split."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny("5.x"))
    request = chat_request(ASK, max_tokens=120, n=6, seed=5)
    request.sampling.temperature = 3.0
    texts, ids = [""] * 6, [[] for _ in range(6)]  # type: list[str], list[list[int]]
    for message in pair.stub.StreamChat(request):
        for delta in message.choices:
            texts[delta.index] += delta.text
            ids[delta.index] += delta.token_ids
    for text, tokens in zip(texts, ids, strict=True):
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)
