"""What InternS1-Pro should answer: prompts by Hugging Face's tokenizer and template, logits by the float64 reference.

transformers has no classes for the family. The prompt is rendered and encoded by transformers' plain tokenizer, its
media expanded as strings; the pixels are those that the server has resized, as for Qwen3-VL, whose tests compare them.

Next: tests/parity/test_grpc_interns1_pro.py
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.items import PlaceholderRange
from tessera.tensors import to_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.series import npy, wave
from tests.parity.cases import ROLES, Case, Clip, Picture, chat_request, greedy, user
from tests.parity.compare import assert_continued
from tests.parity.interns1_pro_reference import Reference
from tests.parity.oracle import Expected
from tests.tiny_interns1_pro import CHAT_TEMPLATE, build_intern_tokenizer

TOKENS = 16
SERIES = "<|ts|><TS_CONTEXT><|/ts|>"
CLIP = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass(frozen=True)
class Series:
    """A time series: a walk of its own for each seed."""

    length: int
    channels: int = 1
    rate: float | None = None
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that stand for it, by the formula of the facts."""
        rate = self.rate or max(self.length / 4, 1)
        stride = math.floor(160 / (1 + math.exp(-rate / 100)) ** 6)
        patches = math.ceil((self.length - 2 * stride) / stride) + 1
        return (patches // 2 + 1) // 2

    def part(self) -> pb.Part:
        """The series in a message."""
        options = types.TimeSeriesOptions(sampling_rate_hz=self.rate) if self.rate else None
        data = npy(wave(self.length, self.channels, self.seed))
        return pb.Part(time_series=pb.TimeSeriesPart(media=pb.MediaSource(data=data), options=options))


Medium = Picture | Clip | Series
Part = str | Medium
Turns = Sequence[tuple[str, Sequence[Part]]]


def request_of(turns: Turns, max_tokens: int = TOKENS) -> pb.ChatRequest:
    """A greedy conversation with the likeliest tokens of each step."""
    messages = [pb.Message(role=ROLES[role], parts=map(_message_part, parts)) for role, parts in turns]
    return pb.ChatRequest(messages=messages, sampling=greedy(max_tokens))


def _message_part(part: Part) -> pb.Part:
    if isinstance(part, Series):
        return part.part()
    return chat_request(Case("part", (user(part),))).messages[0].parts[0]


def intern_tokenizer() -> Any:
    """Hugging Face's plain tokenizer with the family's vocabulary and template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_intern_tokenizer(), chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False
    )


class InternOracle:
    """The right answers of one checkpoint; each is computed once.

    Args:
        path: the checkpoint.
        stub: a server of it, asked for pixels and for the tokens whose logits are then computed.
        weights: in place of the file's, such as dequantised ones.
    """

    def __init__(self, path: Path, stub: Any, weights: dict[str, torch.Tensor] | None = None) -> None:
        self.reference = Reference(path, weights)
        self.tokenizer = intern_tokenizer()
        self._stub = stub
        self._answers: dict[str, Expected] = {}
        self._rows: dict[bytes, np.ndarray] = {}

    def answer(self, name: str, turns: Turns) -> Expected:
        """The expected answer to a conversation, which the server has then given once; computed once for a name."""
        if name not in self._answers:
            request = request_of(turns)
            prepared = self._stub.Prepare(pb.PrepareRequest(chat=request, include_tensors=True))
            prompt = self.render(turns)
            assert prepared.rendered_prompt == prompt
            media = [part for _, parts in turns for part in parts if not isinstance(part, str)]
            self._check(name, prompt, media, prepared, self._stub.Chat(request).choices[0])
        return self._answers[name]

    def continuation(self, name: str, request: pb.GenerateRequest, media: Sequence[Medium]) -> Expected:
        """The expected continuation of a raw prompt of text with items; as `answer`."""
        if name not in self._answers:
            prepared = self._stub.Prepare(pb.PrepareRequest(generate=request, include_tensors=True))
            self._check(name, request.text, media, prepared, self._stub.Generate(request).choices[0])
        return self._answers[name]

    def _check(
        self, name: str, prompt: str, media: Sequence[Medium], prepared: pb.PrepareResponse, choice: pb.ChatChoice
    ) -> None:
        """Compare what was prepared and generated; keep the answer."""
        ids = self._encode(self._expand(prompt, media, prepared.items))
        assert tuple(prepared.token_ids) == ids
        ranges = [[PlaceholderRange(r.offset, r.length) for r in item.ranges] for item in prepared.items]
        assert ranges == self._ranges(ids, prepared.items)
        expected = self._expected(prompt, prepared, tuple(choice.token_ids))
        assert_continued(expected, choice)
        self._answers[name] = expected

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(self, turns: Turns) -> str:
        """The prompt before expansion."""
        messages = [
            {"role": role, "content": "".join(map(str, parts)) if role == "system" else list(map(_content, parts))}
            for role, parts in turns
        ]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _expand(self, prompt: str, media: Sequence[Medium], items: Sequence[types.MultimodalItem]) -> str:
        """Return the prompt with each medium's marker replaced by its tokens, as strings."""
        for part, item in zip(media, items, strict=True):
            run = item.grid_thw.h * item.grid_thw.w // 4
            if isinstance(part, Series):
                prompt = prompt.replace(SERIES, "<|ts|>" + "\0" * part.tokens + "<|/ts|>", 1)
            elif isinstance(part, Picture):
                prompt = prompt.replace("<|image_pad|>", "\1" * run, 1)
            else:
                frames = f"<|vision_start|>{chr(2) * run}<|vision_end|>"
                times = list(zip(item.timestamps[::2], item.timestamps[1::2], strict=True))
                prompt = prompt.replace(CLIP, "".join(f"<{(a + b) / 2:.1f} seconds>{frames}" for a, b in times), 1)
        for code, placeholder in ("\0", "<TS_CONTEXT>"), ("\1", "<|image_pad|>"), ("\2", "<|video_pad|>"):
            prompt = prompt.replace(code, placeholder)
        return prompt

    def _ranges(self, ids: Sequence[int], items: Sequence[types.MultimodalItem]) -> list[list[PlaceholderRange]]:
        """Where each item's placeholders lie: all runs of its token, in the order of the items."""
        places = {
            modality: _runs(ids, self.tokenizer.convert_tokens_to_ids(token))
            for modality, token in (
                (types.MODALITY_IMAGE, "<|image_pad|>"),
                (types.MODALITY_VIDEO, "<|video_pad|>"),
                (types.MODALITY_TIME_SERIES, "<TS_CONTEXT>"),
            )
        }
        return [[places[item.modality].pop(0) for _ in range(item.grid_thw.t or 1)] for item in items]

    def embeddings(self, item: types.MultimodalItem) -> np.ndarray:
        """(tokens, hidden) float64 of an item with pixels or samples; computed once."""
        array = to_array(item.tensor)
        key = array.tobytes() + str((array.shape, item.sampling_rate_hz)).encode()
        if key not in self._rows:
            is_series = item.modality == types.MODALITY_TIME_SERIES
            rows = self.reference.series(array, item.sampling_rate_hz) if is_series else self.reference.vision(array)
            self._rows[key] = rows
        return self._rows[key]

    def _expected(self, prompt: str, prepared: pb.PrepareResponse, tokens: tuple[int, ...]) -> Expected:
        rows: dict[int, np.ndarray] = {}
        for item in prepared.items:
            places = [row for span in item.ranges for row in range(span.offset, span.offset + span.length)]
            rows |= dict(zip(places, self.embeddings(item), strict=True))
        ids = tuple(prepared.token_ids)
        logits = self.reference.logits([*ids, *tokens], rows)[len(ids) - 1 : -1].astype(np.float32)
        top = np.sort(logits, -1)
        generated, margins = tuple(logits.argmax(-1).tolist()), tuple((top[:, -1] - top[:, -2]).tolist())
        return Expected(prompt, self._encode(prompt), ids, (), generated, margins, logits)


def _content(part: Part) -> Mapping[str, str]:
    if isinstance(part, str | Series):
        return {"type": "text", "text": part if isinstance(part, str) else SERIES}
    return {"type": "image" if isinstance(part, Picture) else "video"}


def _runs(ids: Sequence[int], token: int) -> list[PlaceholderRange]:
    starts = [i for i, value in enumerate(ids) if value == token and (i == 0 or ids[i - 1] != token)]
    end: Callable[[int], int] = lambda i: next(j for j in range(i, len(ids) + 1) if j == len(ids) or ids[j] != token)  # noqa: E731
    return [PlaceholderRange(start, end(start) - start) for start in starts]
