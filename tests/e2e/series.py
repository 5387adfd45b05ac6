"""Series and requests with them that the tests over gRPC share.

Next: tests/e2e/test_time_series.py
"""

import io

import numpy as np

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Pair
from tests.parity.cases import greedy

TOKENS = 12


def wave(length: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """(length, channels) float32: a noisy walk, each channel on a scale of its own."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(length, channels)).cumsum(0) * np.arange(1, channels + 1) + seed
    return steps.astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    """An npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def part(data: bytes, rate: float | None = None) -> pb.Part:
    """A series in a message."""
    options = types.TimeSeriesOptions(sampling_rate_hz=rate) if rate is not None else None
    return pb.Part(time_series=pb.TimeSeriesPart(media=pb.MediaSource(data=data), options=options))


def text(value: str) -> pb.Part:
    """Text in a message."""
    return pb.Part(text=value)


def chat(*parts: pb.Part, max_tokens: int = TOKENS) -> pb.ChatRequest:
    """A greedy request of one user message."""
    message = pb.Message(role=pb.ROLE_USER, parts=parts)
    return pb.ChatRequest(messages=[message], sampling=greedy(max_tokens, ignore_eos=True))


def generate(ids: list[int], items: list[types.MultimodalItem], max_tokens: int = TOKENS) -> pb.GenerateRequest:
    """A greedy request of token ids."""
    sampling = greedy(max_tokens, ignore_eos=True)
    return pb.GenerateRequest(token_ids=types.TokenIds(ids=ids), items=items, sampling=sampling)


def prepare(pair: Pair, request: pb.ChatRequest) -> pb.PrepareResponse:
    """What a request would run, with tensors."""
    return pair.stub.Prepare(pb.PrepareRequest(chat=request, include_tensors=True))


def tokens_of(answer: pb.ChatResponse | pb.GenerateResponse) -> list[int]:
    """The tokens of the only choice."""
    return list(answer.choices[0].token_ids)
