"""Bad days: a worker is killed, all are, the gateway is; programs that start, drain and end."""

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import worker_service_pb2 as worker_pb
from tessera.v1.inference_service_pb2_grpc import InferenceServiceStub
from tessera.v1.worker_service_pb2_grpc import WorkerServiceStub
from tests.e2e.harness import SERVING, Flags, Pair, Pairs, Program, wait_until
from tests.e2e.status import Status, assert_says_nothing_of_the_inside, canary_tokens, outcome, status_of
from tests.parity.cases import SMALL, Case, chat_request, user

STORY = Case("story", (user("Tell me a story of this: ", SMALL),))
LOST_S = 2.0
# What the gateway may say when its worker is killed; the killed one says nothing.
GRIEF = {"worker_lost", "worker_unreachable"}


@pytest.fixture
def two(pairs: Pairs, tiny: Callable[[str], Path]) -> Flags:
    """Flags of a pair with two workers."""
    return Flags(tiny("5.x"), workers=2)


def story(max_tokens: int) -> pb.ChatRequest:
    """A greedy request of some length."""
    return chat_request(STORY, max_tokens=max_tokens)


def tokens_of(message: pb.StreamChatResponse) -> list[int]:
    """The new tokens of a message; several steps may have gone into it."""
    return [token for delta in message.choices for token in delta.token_ids]


def read(call: Any) -> tuple[list[int], Status]:
    """The tokens of a stream and how it ended."""
    tokens: list[int] = []
    try:
        for message in call:
            tokens += tokens_of(message)
    except grpc.RpcError as error:
        return tokens, status_of(error)
    return tokens, Status("OK")


def placed(pair: Pair) -> list[str]:
    """Where requests have been placed, in order."""
    return [event["worker"] for event in pair.gateway.events() if event["event"] == "request_placed"]


def test_a_worker_is_killed_and_comes_back(pairs: Pairs, two: Flags) -> None:
    """Its streams end with UNAVAILABLE within two seconds; the other worker's go on; restarted, it is used again."""
    with pairs.fresh(two) as pair, ThreadPoolExecutor(4) as threads:
        alone = list(pair.stub.Chat(story(1500)).choices[0].token_ids)
        calls = [pair.stub.StreamChat(story(1500)) for _ in range(4)]
        started: list[Any] = [next(call) for call in calls]
        assert len(started) == 4
        assert set(placed(pair)[-4:]) == {worker.address for worker in pair.workers}
        endings: list[Future[Any]] = [threads.submit(read, call) for call in calls]
        pair.workers[0].kill()
        killed = time.monotonic()
        wait_until(lambda: sum(ending.done() for ending in endings) >= 2, "the lost streams end", LOST_S)
        assert time.monotonic() - killed < LOST_S
        statuses = [ending.result(timeout=60) for ending in endings]
        lost = [status for _, status in statuses if status.code != "OK"]
        assert [(status.code, status.reason) for status in lost] == [("UNAVAILABLE", "WORKER_LOST")] * 2
        assert_says_nothing_of_the_inside(lost[0])
        for (tokens, status), first in zip(statuses, started, strict=True):
            head = [token for delta in first.choices for token in delta.token_ids]
            assert (head + tokens) == alone[: len(head + tokens)]
            assert status.code != "OK" or len(head + tokens) == 1500
        assert pair.gateway.health() == SERVING
        canary = canary_tokens(pair)
        states = {worker.address: worker.state for worker in pair.model().workers}
        assert states[pair.workers[0].address] == pb.MODEL_STATE_UNAVAILABLE
        assert states[pair.workers[1].address] == pb.MODEL_STATE_READY
        pair.workers[0].restart()
        wait_until(lambda: all(w.state == pb.MODEL_STATE_READY for w in pair.model().workers), "used again", 30)
        assert [canary_tokens(pair) for _ in range(4)] == [canary] * 4
        assert set(placed(pair)[-4:]) == {worker.address for worker in pair.workers}
        pair.assert_idle()


def test_all_workers_are_killed_and_one_comes_back(pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Every stream ends with UNAVAILABLE, so do new requests; service resumes without restarting the gateway."""
    with pairs.fresh(Flags(tiny("5.x"))) as pair:
        canary = canary_tokens(pair)
        calls = [pair.stub.StreamChat(story(3000)) for _ in range(3)]
        unary = pair.stub.Chat.future(story(3000))
        for call in calls:
            next(call)
        pair.workers[0].kill()
        killed = time.monotonic()
        endings = [read(call)[1] for call in calls]
        assert time.monotonic() - killed < LOST_S
        assert {(status.code, status.reason) for status in endings} == {("UNAVAILABLE", "WORKER_LOST")}
        assert status_of(unary.exception()).code == "UNAVAILABLE"
        wait_until(lambda: pair.gateway.health() not in (SERVING, None), "NOT_SERVING", LOST_S)
        status = outcome(lambda: pair.stub.Chat(story(1), timeout=5))
        assert (status.code, status.reason) == ("UNAVAILABLE", "NO_WORKER")
        assert_says_nothing_of_the_inside(status)
        assert pair.model().state == pb.MODEL_STATE_UNAVAILABLE
        assert not pair.stub.ListModels(pb.ListModelsRequest()).models
        pair.workers[0].restart()
        pair.gateway.wait_serving()
        assert canary_tokens(pair) == canary
        pair.assert_idle()


def test_the_gateway_is_killed(pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """A worker drops the sequences of a gateway that has gone within a second, and serves the next gateway."""
    with pairs.fresh(Flags(tiny("5.x"))) as pair:
        canary = canary_tokens(pair)
        for call in [pair.stub.StreamChat(story(3000)) for _ in range(2)]:
            next(call)
        worker = WorkerServiceStub(pair.workers[0].channel)
        pair.gateway.kill()
        wait_until(lambda: idle(worker), "the worker has dropped all", 1.0)
        # Its scratch folder is the operator's to clean: a killed process cannot.
        for leftover in list(pair.scratch.iterdir()):
            leftover.rmdir()
        pair.gateway.restart()
        pair.gateway.wait_serving()
        assert canary_tokens(pair) == canary


def idle(worker: WorkerServiceStub) -> bool:
    """Whether a worker holds nothing."""
    load = worker.Describe(worker_pb.DescribeRequest(), timeout=2).load
    return (load.running, load.waiting, load.used_blocks, load.pinned_items) == (0, 0, 0, 0)


def test_two_gateways_share_a_worker(pairs: Pairs, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Requests of two gateways run side by side on one worker; the end of one gateway is no matter to the other."""
    pair = pairs.get(Flags(tiny("5.x")))
    args = ("--model", str(tiny("5.x")), "--worker", pair.workers[0].address, "--scratch-dir", str(tmp_path))
    second = Program("gateway", args, tmp_path / "gateway.log")
    try:
        second.wait_serving()
        stub = InferenceServiceStub(second.channel)
        theirs, ours = stub.StreamChat(story(600)), pair.stub.StreamChat(story(600))
        next(theirs)
        first = len(tokens_of(next(ours)))
        second.kill()
        tokens, status = read(ours)
        assert status.code == "OK"
        assert first + len(tokens) == 600
    finally:
        if second.running:
            second.kill()
        second.channel.close()


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_a_program_that_is_told_to_stop_finishes_what_it_has(
    pairs: Pairs, tiny: Callable[[str], Path], name: str
) -> None:
    """After SIGTERM health is not SERVING, running streams come to their end, and the program exits with 0."""
    with pairs.fresh(Flags(tiny("5.x"))) as pair:
        call = pair.stub.StreamChat(story(400))
        first = len(tokens_of(next(call)))
        program = pair.gateway if name == "gateway" else pair.workers[0]
        program.process.send_signal(signal.SIGTERM)
        tokens, status = read(call)
        assert status.code == "OK", status
        assert first + len(tokens) == 400
        assert program.process.wait(15) == 0
        if name == "worker":
            wait_until(lambda: pair.gateway.health() != SERVING, "NOT_SERVING without a worker", LOST_S)


# ---- starting


def test_a_gateway_serves_within_four_seconds(pairs: Pairs, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """From the start of the process to SERVING, with a worker up, it takes less than four seconds."""
    pair = pairs.get(Flags(tiny("5.x")))
    args = ("--model", str(tiny("5.x")), "--worker", pair.workers[0].address, "--scratch-dir", str(tmp_path / "s"))
    (tmp_path / "s").mkdir()
    started = time.monotonic()
    gateway = Program("gateway", args, tmp_path / "gateway.log")
    try:
        gateway.wait_serving(20)
        took = time.monotonic() - started
        assert InferenceServiceStub(gateway.channel).Chat(story(1)).usage.completion_tokens == 1
        assert took < 4, f"{took:.1f} s"
        assert gateway.stop() == 0
    finally:
        if gateway.running:
            gateway.kill()
    assert list((tmp_path / "s").iterdir()) == []


def test_a_worker_is_serving_only_when_it_can_answer(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """While files are read and the first step is run health is not SERVING; at the first SERVING a request runs."""
    worker = Program("worker", ("--model", str(tiny("5.x"))), tmp_path / "worker.log")
    stub = WorkerServiceStub(worker.channel)
    seen = []
    try:
        while worker.health() != SERVING:
            assert worker.running, worker.tail()
            try:
                seen.append(stub.Describe(worker_pb.DescribeRequest(), timeout=1).state)
            except grpc.RpcError:
                continue
            if seen[-1] != worker_pb.WORKER_STATE_READY:
                assert worker.health() != SERVING or _state(stub) == worker_pb.WORKER_STATE_READY
        described = stub.Describe(worker_pb.DescribeRequest(), timeout=1)
        assert described.state == worker_pb.WORKER_STATE_READY
        assert seen == sorted(seen), "states only go forward"
        update = next(stub.Execute(iter([_hello(), _submit()]), timeout=20))
        assert update.load.total_blocks == described.total_blocks
        assert worker.stop() == 0
    finally:
        if worker.running:
            worker.kill()


def test_a_worker_told_to_stop_while_it_loads(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """SIGTERM before the model is there ends the worker with 0, without a word of another library's."""
    worker = Program("worker", ("--model", str(tiny("5.x"))), tmp_path / "worker.log")
    try:
        wait_until(lambda: worker.health() is not None, "the worker answers", 20)
        assert worker.health() != SERVING
        assert worker.stop() == 0
    finally:
        if worker.running:
            worker.kill()
    assert worker.complaints() == []


def _state(stub: WorkerServiceStub) -> int:
    return stub.Describe(worker_pb.DescribeRequest(), timeout=1).state


def _hello() -> worker_pb.ExecuteRequest:
    return worker_pb.ExecuteRequest(hello=worker_pb.Hello(gateway_id="test"))


def _submit() -> worker_pb.ExecuteRequest:
    sampling = chat_request(STORY, max_tokens=1).sampling
    sampling.n, sampling.seed, sampling.top_p, sampling.repetition_penalty = 1, 1, 1.0, 1.0
    submit = worker_pb.Submit(request_id="first", prompt_token_ids=[11, 12, 13], sampling=sampling)
    return worker_pb.ExecuteRequest(submit=submit)


def test_a_worker_with_other_files_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A gateway does not use a worker whose config, tokenizer or processor files differ from its own."""
    worker = Program("worker", ("--model", str(tiny("4.57"))), tmp_path / "worker.log")
    args = ("--model", str(tiny("5.x")), "--worker", worker.address, "--scratch-dir", str(tmp_path))
    gateway = Program("gateway", args, tmp_path / "gateway.log")
    try:
        worker.wait_serving()
        refused = lambda: any(e["event"] == "worker_refused" for e in gateway.events())  # noqa: E731 - a condition
        wait_until(refused, "the log says why", 20)
        assert gateway.health() not in (SERVING, None)
        status = outcome(lambda: InferenceServiceStub(gateway.channel).Chat(story(1), timeout=5))
        assert (status.code, status.reason) == ("UNAVAILABLE", "NO_WORKER")
    finally:
        for program in (gateway, worker):
            program.kill()
            program.channel.close()


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_an_unknown_architecture_fails_before_any_weight(
    tiny: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """A model outside the registry ends the program at once, with one line that names those served."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny("5.x").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["UnheardOfForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    program = Program(name, ("--model", str(folder)), tmp_path / "log")
    try:
        assert program.process.wait(20) not in (0, None)
    finally:
        if program.running:
            program.kill()
        program.channel.close()
    assert "UnheardOfForCausalLM" in program.tail()
    assert "Qwen3VLForConditionalGeneration" in program.tail()
    assert "Traceback" not in program.tail()


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_a_taken_port_and_a_missing_model_are_one_line(
    pairs: Pairs, tiny: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """What an operator can mend ends the program with an exit code and one line, not with a traceback."""
    pair = pairs.get(Flags(tiny("5.x")))
    taken = pair.gateway.port
    for model, port in ((tiny("5.x"), taken), (tmp_path / "nowhere", None)):
        program = Program(name, ("--model", str(model)), tmp_path / f"log{port}", port=port)
        try:
            assert program.process.wait(30) not in (0, None)
        finally:
            if program.running:
                program.kill()
            program.channel.close()
        assert "Traceback" not in program.tail(), program.tail()
        assert program.tail().strip()
