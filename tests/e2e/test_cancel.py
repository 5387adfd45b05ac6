"""A caller who leaves, or whose time is up, stops the work at whatever stage it is, and frees everything."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import Flags, Pair, Pairs, wait_until
from tests.e2e.status import canary_tokens, outcome, status_of
from tests.parity.cases import SMALL, Case, Clip, chat_request, clip, pixels, png, user, video_file

SOON_S = 1.0  # for a busy machine; a step of the tiny model takes some milliseconds
STORY = Case("story", (user("Tell me a story."),))
SEEING = Case("seeing", (user("Tell me a story of this: ", SMALL),))
LONG_TEXT = "what is this? " * 400  # some 4000 tokens
NARROW = ("--max-sequences", "1", "--max-batched-tokens", "16", "--no-prefix-cache")


@pytest.fixture
def pair(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """The default pair."""
    return pairs.get(Flags(tiny("5.x")))


@pytest.fixture
def narrow(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair that runs one sequence at a time, 16 tokens a step."""
    return pairs.get(Flags(tiny("5.x"), worker=NARROW))


def load(pair: Pair) -> tuple[int, int, int]:
    """Running and waiting sequences, and the blocks that they hold."""
    worker = pair.model().workers[0]
    return worker.running, worker.waiting, worker.used_blocks


def children(pid: int) -> set[int]:
    """Processes below a process."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            below = {int(child) for child in task.read_text().split()}
            found |= below.union(*(children(child) for child in below))
    return found


def decoder(pair: Pair) -> int | None:
    """The process that has a clip's file open; None where none has."""
    scratch = pair.scratch.resolve()
    for pid in children(pair.gateway.pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # files are closed and processes end meanwhile
            if any(file.readlink().is_relative_to(scratch) for file in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
    return None


def is_stopped(pid: int) -> bool:
    """Whether a process stands still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextlib.contextmanager
def held_decoder(pair: Pair) -> Iterator[int]:
    """A process that is stopped in the midst of a clip.

    The server lets a process live whose clip is done a moment after its caller has left, and a quick machine needs no
    longer than that for any clip; a process that stands still is not done when the cancel comes, on any machine.
    """
    held: list[int] = []

    def is_held() -> bool:
        if (pid := decoder(pair)) is None:
            return False
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid), "the process stands still", SOON_S, 0.001)
        if decoder(pair) != pid:  # it had finished just before: the next clip, then
            os.kill(pid, signal.SIGCONT)
            return False
        held.append(pid)
        return True

    wait_until(is_held, "a clip is being decoded", 5, 0.002)
    try:
        yield held[0]
    finally:
        with contextlib.suppress(ProcessLookupError):  # as it should be: it was ended
            os.kill(held[0], signal.SIGCONT)


def assert_freed(pair: Pair) -> None:
    """Nothing is held any more, soon."""
    wait_until(lambda: not pair.unrest(), "everything freed", SOON_S)


def slow_clip(fps: float) -> pb.ChatRequest:
    """A request whose clip is a file that takes a moment to decode; each rate is a piece of work of its own."""
    clip_file = replace(_clip_of_some_length(), fps=fps)
    return chat_request(Case("slow", (user(clip_file, "What happens?"),)), max_tokens=2)


def slow_frames() -> pb.ChatRequest:
    """A request whose pictures take seconds to decode."""
    shades = np.repeat((np.arange(2000) // 8).astype(np.uint8), 2000 * 3).reshape(2000, 2000, 3)
    frames = Clip(frames=(png(shades),) * 80, timestamps=tuple(float(i) for i in range(80)))
    return chat_request(Case("slow_frames", (user(frames, "What happens?"),)), max_tokens=2)


@cache
def _clip_of_some_length() -> Clip:
    first = pixels(60, 480, 640)
    return Clip(video_file([np.roll(first, 5 * i % 640, axis=1) for i in range(300)], 30.0, ".mp4", "mp4v"))


def endless(**sampling: Any) -> pb.ChatRequest:
    """A request that runs for seconds."""
    return chat_request(STORY, max_tokens=3500, **sampling)


# ---- cancel


def test_cancel_while_decoding_media(pair: Pair) -> None:
    """Cancelled clips are dropped: their files are gone, whoever decoded them is ended, and others can be decoded."""
    before = children(pair.gateway.pid)
    calls = [pair.stub.Chat.future(slow_clip(fps=1.0 + i / 8)) for i in range(8)]
    with held_decoder(pair) as pid:
        for call in calls:
            call.cancel()
        assert_freed(pair)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the process that decoded is ended", SOON_S)
    wait_until(lambda: len(children(pair.gateway.pid)) >= len(before), "as many processes as before", 10)
    assert load(pair) == (0, 0, 0)
    assert pair.stub.Chat(chat_request(SEEING, max_tokens=2)).usage.completion_tokens == 2


def test_cancel_while_waiting_for_the_worker(narrow: Pair) -> None:
    """A request that waits for a seat leaves the queue; the one that runs goes on."""
    running = narrow.stub.StreamChat(endless())
    next(running)
    waiting = narrow.stub.StreamChat(endless())
    wait_until(lambda: load(narrow)[1] == 1, "the second one waits", 5)
    waiting.cancel()
    wait_until(lambda: load(narrow)[:2] == (1, 0), "the queue is empty", SOON_S)
    assert next(running).choices
    running.cancel()
    assert_freed(narrow)


def test_cancel_while_prefilling(narrow: Pair) -> None:
    """A prompt that is being computed in small chunks is dropped between two of them."""
    request = chat_request(Case("long", (user(LONG_TEXT),)), max_tokens=2)
    call = narrow.stub.Chat.future(request)
    wait_until(lambda: load(narrow)[2] > 2, "the prompt is being computed", 5, 0.002)
    assert not call.done()
    call.cancel()
    assert_freed(narrow)


@pytest.mark.parametrize("n", [1, 5])
def test_cancel_while_decoding_tokens(pair: Pair, n: int) -> None:
    """A stream that is cancelled between two tokens frees its blocks, whatever its choices."""
    call = pair.stub.StreamChat(endless(n=n, temperature=1.0))
    next(call)
    wait_until(lambda: load(pair)[0] == n, "all choices run", 5)
    call.cancel()
    assert_freed(pair)


def test_cancel_of_one_of_two_twins(pair: Pair) -> None:
    """Two requests for the same picture share its item; when one leaves, the other is answered."""
    twin = chat_request(Case("twin", (user(clip(61, 16, 120, 160), "What?"),)), max_tokens=24)
    leaving, staying = pair.stub.Chat.future(twin), pair.stub.Chat.future(twin)
    leaving.cancel()
    assert staying.result(timeout=30).usage.completion_tokens == 24
    assert_freed(pair)


def test_cancel_of_an_upload(pair: Pair) -> None:
    """An upload that stops half way is forgotten."""
    stop = threading.Event()

    def messages() -> Iterator[pb.UploadMediaRequest]:
        yield pb.UploadMediaRequest(header=pb.UploadHeader(media=pb.MediaFile(), size_bytes=2 << 20))
        yield pb.UploadMediaRequest(chunk=bytes(1 << 20))
        stop.wait(10)

    call = pair.stub.UploadMedia.future(messages())
    time.sleep(0.05)
    call.cancel()
    stop.set()
    assert_freed(pair)
    assert len(canary_tokens(pair)) == 6


def test_random_cancels_leak_nothing(pair: Pair) -> None:
    """Cancelled at random moments, many requests leave nothing behind, and the next one is answered as ever."""
    before = canary_tokens(pair)
    rng = random.Random(7)
    for _ in range(60):
        case = rng.choice((STORY, SEEING))
        calls = [pair.stub.Chat.future(chat_request(case, max_tokens=200, n=rng.randint(1, 3), temperature=0.9))]
        calls += [pair.stub.Chat.future(chat_request(case, max_tokens=200))]
        time.sleep(rng.random() * 0.06)
        for call in calls:
            call.cancel()
    assert_freed(pair)
    assert canary_tokens(pair) == before


# ---- deadline


def assert_late(call: Callable[[], Any]) -> None:
    """A call ends with DEADLINE_EXCEEDED."""
    assert outcome(call).code == "DEADLINE_EXCEEDED"


def test_deadline_while_decoding_media(pair: Pair) -> None:
    """A clip that takes longer than the caller has is dropped."""
    assert_late(lambda: pair.stub.Chat(slow_frames(), timeout=0.3))
    assert_freed(pair)


def test_deadline_while_waiting(narrow: Pair) -> None:
    """A request whose time is up in the queue leaves it."""
    running = narrow.stub.StreamChat(endless())
    next(running)
    assert_late(lambda: narrow.stub.Chat(endless(), timeout=0.3))
    wait_until(lambda: load(narrow)[:2] == (1, 0), "the queue is empty", SOON_S)
    running.cancel()
    assert_freed(narrow)


def test_deadline_while_prefilling(narrow: Pair) -> None:
    """A prompt that cannot be computed in time is dropped."""
    request = chat_request(Case("long", (user(LONG_TEXT),)), max_tokens=2)
    assert_late(lambda: narrow.stub.Chat(request, timeout=0.1))
    assert_freed(narrow)


def test_deadline_while_decoding_tokens(pair: Pair) -> None:
    """A stream whose time is up ends with DEADLINE_EXCEEDED after the tokens that it had time for."""
    call = pair.stub.StreamChat(endless(), timeout=0.6)
    received = 0
    try:
        for message in call:
            received += len(message.choices)
        code = "OK"
    except grpc.RpcError as error:
        code = status_of(error).code
    assert code == "DEADLINE_EXCEEDED"
    assert received > 0
    assert_freed(pair)


def test_a_deadline_that_has_passed(pair: Pair) -> None:
    """A request without any time left costs the workers nothing."""
    assert_late(lambda: pair.stub.Chat(chat_request(SEEING), timeout=0.0005))
    assert_freed(pair)


# ---- a slow client


def test_a_client_that_does_not_read(pair: Pair) -> None:
    """A stream that nobody reads holds up no one else; read at last, it is whole."""
    lazy = pair.stub.StreamChat(chat_request(STORY, max_tokens=1500))
    first = next(lazy)
    started = time.monotonic()
    for _ in range(5):
        assert len(canary_tokens(pair)) == 6
    assert time.monotonic() - started < 5
    wait_until(lambda: load(pair)[0] == 0, "the worker has long finished", 30)
    rest = list(lazy)
    tokens = [token for message in (first, *rest) for delta in message.choices for token in delta.token_ids]
    assert len(tokens) == 1500
    assert rest[-1].usage.completion_tokens == 1500
