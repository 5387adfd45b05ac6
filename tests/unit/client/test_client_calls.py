"""The sync client against a scripted server: answers, streams, errors, deadlines."""

import threading

import grpc
import pytest

from tessera.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from tessera.v1 import inference_service_pb2 as pb
from tessera_client import Client, Image, errors, system, user
from tests.fakes.inference import FakeInference, FakeServer


def test_chat_returns_text_ids_usage_and_finish_reason(client: Client, service: FakeInference) -> None:
    """A finished answer has its text, ids, usage, seed, finish reason and what stopped it."""
    result = client.chat("What is this?", seed=3)
    assert result.text == "a red circle."
    assert result.token_ids == (10, 11, 12, 2)
    assert (result.finish_reason, result.choices[0].matched_stop) == ("stop", 2)
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (10, 4)
    assert (result.model, result.seed) == ("shapes", 3)


def test_request_id_is_sent_and_echoed(client: Client, service: FakeInference) -> None:
    """A request id that is given travels as x-request-id; else the client makes one."""
    assert client.chat("hi", request_id="abc").request_id == "abc"
    assert len(client.chat("hi").request_id) == 32


def test_metadata_of_client_and_call_are_sent(server: FakeServer) -> None:
    """Metadata of the client and of the call travel together."""
    with Client(server.address, metadata=[("authorization", "Bearer x")]) as client:
        client.chat("hi", metadata=[("traceparent", "00-1")])
    sent = server.service.requests[-1][2]
    assert (sent["authorization"], sent["traceparent"]) == ("Bearer x", "00-1")


def test_every_sampling_parameter_reaches_its_field(client: Client, service: FakeInference) -> None:
    """Each keyword is the field of that name; None is unset, zero is zero."""
    given = {
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "seed": 9,
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "priority": -4,
    }
    client.chat("hi", **given, stop="end", logit_bias={7: -1.5})
    sampling = service.last.sampling
    assert {name: getattr(sampling, name) for name in given} == given
    assert (list(sampling.stop), dict(sampling.logit_bias)) == (["end"], {7: -1.5})
    assert set(given) | {"stop", "logit_bias"} == set(sampling.DESCRIPTOR.fields_by_name)
    client.chat("hi", temperature=None)
    assert not service.last.sampling.HasField("temperature")


def test_logprobs_come_back_with_their_tokens(client: Client) -> None:
    """Log probabilities stand beside the ids, with the likeliest where asked for."""
    choice = client.chat("hi", logprobs=True, top_logprobs=2).choices[0]
    assert len(choice.logprobs) == len(choice.token_ids)
    assert choice.logprobs[0].chosen.token_id == 10
    assert len(choice.logprobs[0].top) == 2


def test_media_and_template_options_reach_their_fields(client: Client, service: FakeInference) -> None:
    """Options of a modality stand on the request, template arguments in a Struct."""
    client.chat(
        "hi",
        image_options={"max_pixels": 100},
        video_options={"num_frames": 4, "frame_indices": [1, 2]},
        video_layout="v4",
        template_args={"enable_thinking": False, "tools": [1]},
        add_generation_prompt=False,
        cache_salt=b"s",
    )
    request: pb.ChatRequest = service.last
    assert request.media_options.image.max_pixels == 100
    assert request.media_options.video.num_frames == 4
    assert list(request.media_options.video.frame_indices) == [1, 2]
    assert request.media_options.video_layout == 2
    assert request.template_args["enable_thinking"] is False
    assert request.HasField("add_generation_prompt")
    assert not request.add_generation_prompt
    assert request.cache_salt == b"s"


@pytest.mark.parametrize(
    ("options", "text"),
    [({"max_token": 3}, "did you mean 'max_tokens'"), ({"colour": 3}, "unknown option 'colour'; known are")],
)
def test_an_unknown_keyword_is_a_type_error_with_a_hint(client: Client, options: dict, text: str) -> None:
    """A misspelled keyword never vanishes."""
    with pytest.raises(TypeError, match=text):
        client.chat("hi", **options)


def test_a_wrong_value_names_its_field(client: Client) -> None:
    """A value of the wrong type is refused before anything is sent, with the field's path."""
    with pytest.raises(errors.InvalidArgument) as caught:
        client.chat("hi", max_tokens="many")  # type: ignore[arg-type]
    assert caught.value.field == "sampling.max_tokens"
    with pytest.raises(errors.InvalidArgument) as caught:
        client.chat("hi", video_options={"frames": 3})
    assert caught.value.field == "media_options.video.frames"


def test_stream_yields_deltas_and_adds_up_to_the_answer(client: Client) -> None:
    """Deltas come as they are made; the stream's result equals the unary answer."""
    stream = client.stream_chat("hi", n=2)
    deltas = list(stream)
    assert [delta.text for delta in deltas if delta.index == 1] == ["a ", "red ", "circle."]
    assert [delta.finish_reason for delta in deltas[-2:]] == ["stop", "stop"]
    assert stream.done
    assert stream.result().choices == client.chat("hi", n=2).choices
    assert (stream.text, stream.usage.completion_tokens, stream.model) == ("a red circle.", 8, "shapes")


def test_stream_result_reads_what_is_left(client: Client) -> None:
    """`result()` on a fresh stream runs it to the end."""
    assert client.stream_generate("hi").result().text == "a red circle."


def test_a_stream_cannot_be_iterated_twice(client: Client) -> None:
    """A second loop over a stream is an error, not silence."""
    stream = client.stream_chat("hi")
    list(stream)
    with pytest.raises(RuntimeError, match="once"):
        list(stream)


def wait_for(condition, seconds: float = 5.0) -> bool:
    """Wait for another thread's doing."""
    event = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        event.wait(0.01)
    return False


def test_leaving_the_loop_cancels_the_request(client: Client, service: FakeInference) -> None:
    """`break` ends the request on the server."""
    service.hold.add("StreamChat")
    stream = client.stream_chat("hi")
    for delta in stream:
        assert delta.text == "a "
        break
    assert wait_for(lambda: service.cancelled == ["StreamChat"])
    assert stream.result().text == "a "
    assert not stream.done


def test_closing_a_stream_from_another_thread_ends_its_loop(client: Client, service: FakeInference) -> None:
    """`close()` makes a blocked loop end without an error."""
    service.hold.add("StreamChat")
    stream = client.stream_chat("hi")
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    assert [delta.text for delta in stream] == ["a "]
    closer.join()
    assert wait_for(lambda: service.cancelled == ["StreamChat"])


def test_errors_carry_reason_field_and_request_id(client: Client, service: FakeInference) -> None:
    """ErrorInfo, BadRequest and the id of the request stand on the typed error."""
    service.fail["Chat"] = InvalidArgument("The image cannot be read.", reason="IMAGE_UNREADABLE", field="messages[0]")
    with pytest.raises(errors.InvalidArgument) as caught:
        client.chat("hi", request_id="r1")
    error = caught.value
    assert (error.message, error.reason, error.field) == (
        "The image cannot be read.",
        "IMAGE_UNREADABLE",
        "messages[0]",
    )
    assert (error.code, error.request_id) == (grpc.StatusCode.INVALID_ARGUMENT, "r1")
    assert str(error) == "The image cannot be read. [IMAGE_UNREADABLE at messages[0]]"


def test_overload_carries_the_delay(client: Client, service: FakeInference) -> None:
    """RetryInfo stands on the error in seconds."""
    service.fail["Chat"] = ResourceExhausted("Busy.", reason="OVERLOADED", retry_after_s=2.5)
    with pytest.raises(errors.ResourceExhausted) as caught:
        client.chat("hi")
    assert (caught.value.retry_after, caught.value.retryable) == (2.5, True)


def test_an_error_in_the_middle_of_a_stream_comes_after_its_deltas(client: Client, service: FakeInference) -> None:
    """What was streamed before a failure is delivered; then the error is raised."""
    service.fail["StreamChat:2"] = FailedPrecondition("Gone.", reason="ITEM_NOT_FOUND")
    texts = []
    with pytest.raises(errors.FailedPrecondition):
        texts.extend(delta.text for delta in client.stream_chat("hi"))
    stream = client.stream_chat("hi")
    with pytest.raises(errors.FailedPrecondition):
        stream.result()
    assert stream.text == "a red "


@pytest.mark.parametrize("name", [cls for cls in errors._BY_CODE.values() if cls is not errors.Cancelled])
def test_every_status_has_its_class(client: Client, service: FakeInference, name: type) -> None:
    """Each error of the server's tree arrives as the class of the same name."""
    import tessera.errors as tree

    service.fail["GetModel"] = getattr(tree, name.__name__)("No.", reason="WHY")
    with pytest.raises(name) as caught:
        client.get_model()
    assert (type(caught.value), caught.value.reason) == (name, "WHY")


def test_a_deadline_is_a_timeout_error(client: Client, service: FakeInference) -> None:
    """A call that takes longer than its timeout raises DeadlineExceeded, which is a TimeoutError."""
    service.hold.add("Chat")
    with pytest.raises(TimeoutError) as caught:
        client.chat("hi", timeout=0.05)
    assert isinstance(caught.value, errors.DeadlineExceeded)
    assert wait_for(lambda: service.cancelled == ["Chat"])


def test_no_server_is_told_by_address() -> None:
    """A connection that is refused names the address."""
    with Client("127.0.0.1:1", timeout=2) as client, pytest.raises(errors.ServerUnreachable, match=r"127\.0\.0\.1:1"):
        client.list_models()


def test_a_closed_client_refuses_calls(server: FakeServer) -> None:
    """After close() a call is a RuntimeError, not a hang."""
    client = Client(server.address)
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.chat("hi")


def test_prepare_returns_plan_counts_and_items(client: Client, picture) -> None:
    """Prepare tells ids, items, media and what is left, and its items go into generate."""
    plan = client.prepare([Image(picture), "What?"])
    assert (len(plan.token_ids), plan.usage.image_tokens, plan.max_completion_tokens) == (10, 4, 500)
    assert plan.held_for_s == 600.0
    assert (plan.media[0].modality, plan.media[0].grid_thw.h) == ("image", 4)
    assert plan.items[0].ranges == ((0, 4),)
    assert plan.items[0].content_hash == plan.media[0].content_hash


def test_items_of_prepare_go_back_by_hash(client: Client, service: FakeInference, picture) -> None:
    """What Prepare returned is sent again as it came: hash, grid and ranges."""
    plan = client.prepare([Image(picture), "What?"])
    result = client.generate(plan.token_ids, items=plan.items)
    item = service.last.items[0]
    assert item.content_hash == plan.items[0].content_hash
    assert (item.ranges[0].length, item.grid_thw.w) == (4, 6)
    assert result.prompt.token_ids == plan.token_ids
    assert result.prompt.items[0].content_hash == plan.items[0].content_hash


def test_models_are_described(client: Client) -> None:
    """A model's state, limits, defaults and workers are plain values."""
    (model,) = client.list_models()
    assert (model.name, model.state, model.ready, model.modalities) == ("shapes", "ready", True, ("image", "video"))
    assert model.limits.max_frames == 768
    assert model.default_sampling == {"temperature": 0.0}
    assert (model.workers[0].state, model.workers[0].ops) == ("ready", {"attention": "torch"})
    with pytest.raises(errors.NotFound):
        client.get_model("other")


def test_waiting_ends_when_the_model_is_ready(client: Client, service: FakeInference) -> None:
    """The wait looks again until the state is ready, and tells what it sees."""
    service.states = [(None, 0.0), (pb.MODEL_STATE_LOADING, 0.4), (pb.MODEL_STATE_WARMING, 0.0)]
    seen: list = []
    model = client.wait_until_ready(timeout=5, on_progress=seen.append, poll_s=0.001)
    assert model.ready
    assert [m and (m.state, round(m.progress, 1)) for m in seen] == [
        None,
        ("loading", 0.4),
        ("warming", 0.0),
        ("ready", 1.0),
    ]


def test_waiting_for_another_model_is_refused(client: Client) -> None:
    """A server that serves other models is told apart from one that is starting."""
    with pytest.raises(errors.NotFound, match="served are: shapes"):
        client.wait_until_ready("other", timeout=1)


def test_waiting_has_a_deadline() -> None:
    """A server that never comes up is a timeout that says what was last seen."""
    with Client("127.0.0.1:1") as client, pytest.raises(errors.DeadlineExceeded, match="still not ready"):
        client.wait_until_ready(timeout=0.05, poll_s=0.01)


def test_turns_have_roles(client: Client, service: FakeInference) -> None:
    """A conversation keeps its turns, roles and the order of its parts."""
    client.chat([system("Be brief."), user("a", "b"), {"role": "assistant", "content": "c"}, user("d")])
    assert [message.role for message in service.last.messages] == [1, 2, 3, 2]
    assert [part.text for part in service.last.messages[1].parts] == ["a", "b"]
