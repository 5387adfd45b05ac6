"""A small Qwen-like processor for the tests of prompts: no weights, no torch.

Next: test_prompt_qwen3_vl.py.
"""

from functools import cache
from pathlib import Path

from gateway.media.rules import MediaRules
from gateway.processor.chat_template import ChatTemplate
from gateway.processor.qwen3_vl import Qwen3VLProcessor
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.items import ItemGeometry, MultimodalItem, PlaceholderRange
from tessera.modality import Modality, PayloadKind
from tests.tiny_models import CHAT_TEMPLATE, build_tokenizer

NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@cache
def tokenizer() -> Tokenizer:
    """The tiny checkpoints' tokenizer."""
    return Tokenizer(build_tokenizer(), NAMED)


@cache
def processor() -> Qwen3VLProcessor:
    """A processor with the tiny checkpoints' template; 640 ids, patches of 16, merged 2 by 2, frames in pairs."""
    return Qwen3VLProcessor(
        architecture="Qwen3VLForConditionalGeneration",
        tokenizer=tokenizer(),
        template=ChatTemplate(CHAT_TEMPLATE, tokenizer()),
        rules=MediaRules(),
        geometry=ItemGeometry(16, 2, 2, 64, 2),
        tokens=VisionTokens.of(tokenizer(), {}),
        vocab_size=640,
    )


def image(h: int = 4, w: int = 6, *spans: tuple[int, int]) -> MultimodalItem:
    """An image of h by w patches; spans are (offset, length)."""
    return _item(Modality.IMAGE, (1, h, w), (), spans)


def video(t: int = 2, h: int = 4, w: int = 4, *spans: tuple[int, int], times: tuple[float, ...] = ()) -> MultimodalItem:
    """A clip of t temporal patches, by default a frame each half second."""
    return _item(Modality.VIDEO, (t, h, w), times or tuple(i / 2 for i in range(2 * t)), spans)


def _item(
    modality: Modality, grid: tuple[int, int, int], times: tuple[float, ...], spans: tuple[tuple[int, int], ...]
) -> MultimodalItem:
    return MultimodalItem(
        modality=modality,
        payload_kind=PayloadKind.PIXELS_U8,
        content_hash=bytes(32),
        grid_thw=grid,
        timestamps=times,
        ranges=tuple(PlaceholderRange(*span) for span in spans),
    )


def ids_of(text: str) -> tuple[int, ...]:
    """Encode, special tokens as tokens."""
    return tuple(tokenizer().encode(text, allow_special=True))


def write_checkpoint_tokenizer(path: Path) -> Path:
    """Write tokenizer.json into a directory."""
    path.mkdir(exist_ok=True)
    build_tokenizer().save(str(path / "tokenizer.json"))
    return path
