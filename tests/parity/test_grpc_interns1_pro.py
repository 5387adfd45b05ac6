"""InternS1-Pro over gRPC against the float64 reference: pictures, clips and several time series in a request.

Every prompt is laid down here by hand from the reference's number of embeddings, and every continuation is checked
token by token: each is the reference's choice after all tokens before it.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.processor.tokenizer import Tokenizer
from tessera.modality import Modality
from tessera.tensors import from_array
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs
from tests.parity.cases import NEW_TOKENS, greedy
from tests.parity.interns1_pro_reference import Array, Reference
from tests.parity.test_grpc_pressure import BLOCK_SIZE, preemptions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FAMILY = "interns1_pro"
LOGPROB_TOLERANCE = 1e-3
WRAPPED = {
    "image": ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>"),
    "video": ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>"),
    "time_series": ("<|ts|>", "<TS_CONTEXT>", "<|/ts|>"),
}
FPS = 2
FORMS = ("text", "short_ids", "expanded_ids")


@dataclass(frozen=True)
class Item:
    """Pixels of a still or a clip, or samples at a rate."""

    modality: str
    array: NDArray
    rate_hz: float = 0.0

    def embeddings(self, reference: Reference) -> Array:
        """What the reference's encoder makes of it."""
        return reference.vision(self.array) if self.array.ndim == 4 else reference.series(self.array, self.rate_hz)

    @property
    def frames(self) -> int:
        """Runs of placeholders."""
        return -(-len(self.array) // 2) if self.modality == "video" else 1

    def message(self, spans: Sequence[tuple[int, int]] = ()) -> types.MultimodalItem:
        """As a caller with a processor of its own sends it."""
        visual = self.array.ndim == 4
        made = types.MultimodalItem(
            modality=Modality(self.modality).to_proto(),
            payload_kind=types.PAYLOAD_KIND_PIXELS_U8 if visual else types.PAYLOAD_KIND_SAMPLES,
            tensor=from_array(self.array),
            ranges=[types.PlaceholderRange(offset=offset, length=length) for offset, length in spans],
            sampling_rate_hz=self.rate_hz,
        )
        if visual:
            rows, columns = self.array.shape[1] // 16, self.array.shape[2] // 16
            made.grid_thw.CopyFrom(types.GridThw(t=self.frames, h=rows, w=columns))
            made.timestamps.extend(index / FPS for index in range(len(self.array) if self.modality == "video" else 0))
        return made


@dataclass
class Prompt:
    """A prompt laid down by hand.

    Attributes:
        text: with one placeholder for each item, between its markers.
        ids: expanded.
        rows: embeddings by their row in `ids`.
        spans: (offset, length) of each item's runs.
    """

    text: str
    ids: list[int]
    rows: dict[int, Array]
    spans: list[list[tuple[int, int]]]


class Oracle:
    """The reference of a checkpoint and its tokenizer."""

    def __init__(self, checkpoint: Path) -> None:
        self.reference = Reference(checkpoint)
        self.tokenizer = Tokenizer.from_dir(checkpoint)
        self._made: dict[int, Array] = {}

    def encode(self, text: str) -> list[int]:
        """Special tokens as tokens."""
        return self.tokenizer.encode(text, allow_special=True)

    def prompt(self, *parts: str | Item) -> Prompt:
        """Lay down texts and items."""
        made = Prompt("", [], {}, [])
        for part in parts:
            if isinstance(part, str):
                made.text += part
                made.ids += self.encode(part)
                continue
            start, placeholder, end = (self.encode(token) for token in WRAPPED[part.modality])
            made.text += "".join(WRAPPED[part.modality])
            runs = np.split(self._embeddings(part), part.frames)
            made.spans.append([])
            for index, run in enumerate(runs):
                if part.modality == "video":
                    made.ids += self.encode(f"<{self._time(part, index):.1f} seconds>")
                made.ids += start
                made.spans[-1].append((len(made.ids), len(run)))
                made.rows |= dict(enumerate(run, len(made.ids)))
                made.ids += placeholder * len(run) + end
        return made

    @staticmethod
    def _time(item: Item, pair: int) -> float:
        """The middle of two frames; an odd last one is its own second."""
        first, last = 2 * pair, min(2 * pair + 1, len(item.array) - 1)
        return (first + last) / 2 / FPS

    def _embeddings(self, item: Item) -> Array:
        if id(item) not in self._made:
            self._made[id(item)] = item.embeddings(self.reference)
        return self._made[id(item)]

    def assert_continued(self, prompt: Prompt, choice: pb.ChatChoice, num_tokens: int = NEW_TOKENS) -> None:
        """Every token is the reference's likeliest one, with its log probability."""
        tokens = list(choice.token_ids)
        assert len(tokens) == num_tokens
        logits = self.reference.logits(prompt.ids + tokens, prompt.rows)[len(prompt.ids) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        top = logits.max(-1)
        expected = -np.log(np.exp(logits - top[:, None]).sum(-1))
        assert np.abs(expected - [step.chosen.logprob for step in choice.logprobs]).max() < LOGPROB_TOLERANCE


@pytest.fixture(scope="module")
def oracle(tiny: Callable[[str], Path]) -> Oracle:
    """Of the shared tiny checkpoint."""
    return Oracle(tiny(FAMILY))


def picture(rows: int, columns: int, seed: int = 0) -> Item:
    """A noisy still; sides in patches."""
    return Item("image", np.random.default_rng(seed).integers(0, 256, (1, rows * 16, columns * 16, 3), dtype=np.uint8))


def clip(frames: int, rows: int, columns: int) -> Item:
    """A noisy clip, two frames a second."""
    shape = (frames, rows * 16, columns * 16, 3)
    return Item("video", np.random.default_rng(frames).integers(0, 256, shape, dtype=np.uint8))


def series(length: int, channels: int, rate_hz: float) -> Item:
    """A random walk."""
    steps = np.random.default_rng(length).normal(size=(length, channels)).cumsum(0)
    return Item("time_series", steps.astype(np.float32), rate_hz)


SLOW, STEREO, SOUND, SHORT = series(90, 1, 1.0), series(180, 3, 100.0), series(1000, 1, 16_000.0), series(40, 2, 0.0)
PROMPTS: dict[str, tuple[str | Item, ...]] = {
    "text": ("a red circle and a blue square",),
    "image": ("Describe ", picture(4, 6), " please:"),
    "video": (clip(5, 4, 4), "what moves?"),
    "one series": ("Read ", SLOW, "first"),
    "four series": (SLOW, "a", STEREO, SOUND, "b", SHORT, "c"),
    "all": ("x", STEREO, picture(2, 8), clip(4, 2, 4), "y", SLOW, picture(8, 2), SHORT, "z"),
}


def request_of(prompt: Prompt, items: Sequence[Item], form: str) -> pb.GenerateRequest:
    """A prompt as text, as ids with one placeholder an item, or as expanded ids with ranges."""
    spans = prompt.spans if form == "expanded_ids" else [[]] * len(items)
    made = pb.GenerateRequest(
        items=[item.message(of_item) for item, of_item in zip(items, spans, strict=True)], sampling=greedy(NEW_TOKENS)
    )
    if form == "text":
        made.text = prompt.text
    return made


def ask(pair: Pair, oracle: Oracle, name: str, form: str = "text") -> tuple[Prompt, pb.GenerateRequest]:
    """Return a prompt by name and its request."""
    items = [part for part in PROMPTS[name] if isinstance(part, Item)]
    prompt = oracle.prompt(*PROMPTS[name])
    request = request_of(prompt, items, form)
    if form != "text":
        request.token_ids.ids.extend(prompt.ids if form == "expanded_ids" else oracle.encode(prompt.text))
    return prompt, request


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("form", FORMS)
def test_generate(name: str, form: str, oracle: Oracle, pair_of: Callable[..., Pair]) -> None:
    """In every form a prompt becomes the ids laid down by hand, and goes on as the reference does."""
    pair = pair_of(FAMILY)
    prompt, request = ask(pair, oracle, name, form)
    response = pair.stub.Generate(request)
    assert list(response.prompt.token_ids) == prompt.ids
    assert [[(span.offset, span.length) for span in item.ranges] for item in response.prompt.items] == prompt.spans
    oracle.assert_continued(prompt, response.choices[0])


def run_all(pair: Pair, oracle: Oracle) -> None:
    """Send all prompts at once and check each answer."""
    asked = [ask(pair, oracle, name) for name in PROMPTS]
    calls = [pair.stub.Generate.future(request) for _, request in asked]
    for (prompt, _), call in zip(asked, calls, strict=True):
        oracle.assert_continued(prompt, call.result().choices[0])


def test_all_at_once(oracle: Oracle, pair_of: Callable[..., Pair]) -> None:
    """Series of different length, rate and channels are encoded in one batch with others and do not mix."""
    run_all(pair_of(FAMILY), oracle)


def test_16_tokens_a_step(oracle: Oracle, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Chunks that cut every item, without any cache, change nothing."""
    flags = ("--max-batched-tokens", "16", "--max-sequences", "8", "--no-prefix-cache", "--no-retain-encoded")
    run_all(pairs.get(Flags(tiny(FAMILY), worker=flags)), oracle)


def test_few_blocks(oracle: Oracle, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """With KV blocks for little more than one request, requests are preempted and recomputed, and answered alike."""
    longest = NEW_TOKENS + max(len(oracle.prompt(*parts).ids) for parts in PROMPTS.values())
    blocks = -(-longest // BLOCK_SIZE) + 2
    limits = ("--max-model-len", str(longest), "--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks))
    # Each of these needs most of the blocks in the end: two of them cannot run side by side to their ends.
    stories = [oracle.prompt(f"Tell me story {i}.") for i in range(3)]
    tokens = longest * 2 // 3
    with pairs.fresh(Flags(tiny(FAMILY), worker=(*limits, "--log-level", "debug"))) as pair:
        requests = [pb.GenerateRequest(text=story.text, sampling=greedy(tokens)) for story in stories]
        calls = [pair.stub.Generate.future(request) for request in requests]
        run_all(pair, oracle)
        for story, call in zip(stories, calls, strict=True):
            oracle.assert_continued(story, call.result().choices[0], tokens)
        assert preemptions(pair) > 0, "nothing was preempted: the test shows nothing"


def test_chat_with_files(oracle: Oracle, pair_of: Callable[..., Pair]) -> None:
    """npy files in a conversation: each series has the samples and the rate it was given, and stands where it was."""
    items = [STEREO, SLOW]
    parts = [pb.Part(text="Compare "), *(pb.Part(time_series=_file(item)) for item in items), pb.Part(text=" please.")]
    chat = pb.ChatRequest(messages=[pb.Message(role=pb.ROLE_USER, parts=parts)], sampling=greedy(NEW_TOKENS))
    prompt = oracle.prompt(
        "<|im_start|>user\nCompare ", STEREO, SLOW, " please.<|im_end|>\n<|im_start|>assistant\n<think>"
    )
    stub = pair_of(FAMILY).stub
    prepared = stub.Prepare(pb.PrepareRequest(chat=chat, include_tensors=True))
    assert list(prepared.token_ids) == prompt.ids
    for item, made in zip(items, prepared.items, strict=True):
        assert np.array_equal(np.frombuffer(made.tensor.data, np.float32).reshape(item.array.shape), item.array)
        assert made.sampling_rate_hz == item.rate_hz
    oracle.assert_continued(prompt, stub.Chat(chat).choices[0])


def _file(item: Item) -> pb.TimeSeriesPart:
    written = io.BytesIO()
    np.save(written, item.array)
    options = types.TimeSeriesOptions(sampling_rate_hz=item.rate_hz)
    return pb.TimeSeriesPart(media=pb.MediaSource(data=written.getvalue()), options=options)


def test_embeddings_beside_samples(oracle: Oracle, pair_of: Callable[..., Pair]) -> None:
    """A series that the caller has encoded stands beside one that the worker encodes."""
    prompt = oracle.prompt("a", SLOW, "b", STEREO)
    ready = types.MultimodalItem(
        modality=types.MODALITY_TIME_SERIES,
        payload_kind=types.PAYLOAD_KIND_EMBEDDINGS,
        tensor=from_array(SLOW.embeddings(oracle.reference).astype(np.float32)),
    )
    request = pb.GenerateRequest(
        text=prompt.text, items=[ready, STEREO.message()], sampling=greedy(NEW_TOKENS), cache_salt=b"embeddings"
    )
    response = pair_of(FAMILY).stub.Generate(request)
    assert list(response.prompt.token_ids) == prompt.ids
    oracle.assert_continued(prompt, response.choices[0])
