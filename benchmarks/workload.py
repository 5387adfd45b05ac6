"""Requests of one kind: a 448 x 448 picture and text, 271 prompt tokens with the template's own; no two are alike.

A request is a function of its number alone, so both sides of a question draw the same ones, each in its own process.

Next: contestants/hugging_face.py
"""

import functools
import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

PROMPT_TOKENS = 271
PICTURE_SIDE = 448
PICTURE_TOKENS = 196
PAD = "<|image_pad|>"
_TEMPLATE = "<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Request:
    """One user turn.

    Attributes:
        picture: a PNG file.
        text: follows the picture.
    """

    picture: bytes
    text: str

    @property
    def prompt(self) -> str:
        """The chat as a model reads it, the picture's tokens spelled out."""
        return _TEMPLATE.format(picture=PAD * PICTURE_TOKENS, text=self.text)


class Workload:
    """Draws requests for a checkpoint.

    Args:
        model_dir: its tokenizer gives the words.
    """

    def __init__(self, model_dir: Path) -> None:
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._words = single_token_words(tokenizer)
        around = tokenizer.encode(_TEMPLATE.format(picture="", text="")).ids
        self._text_tokens = PROMPT_TOKENS - PICTURE_TOKENS - len(around)

    def request(self, number: int) -> Request:
        """Return the request of a number."""
        rng = random.Random(number)
        text = "".join(rng.choices(self._words, k=self._text_tokens))
        return Request(png(picture(number, PICTURE_SIDE, PICTURE_SIDE)), text)

    def requests(self, first: int, count: int) -> list[Request]:
        """Return `count` requests from `first` on."""
        return [self.request(number) for number in range(first, first + count)]


def single_token_words(tokenizer: Tokenizer) -> list[str]:
    """Return words with a leading space that are one token each, so that a text's length is the number of its words."""
    entries = sorted(tokenizer.get_vocab(with_added_tokens=False))
    words = [" " + entry[1:] for entry in entries if entry[0] == "Ġ" and entry[1:].isascii() and entry[1:].isalpha()]
    encoded = tokenizer.encode_batch(words, add_special_tokens=False)
    return [word for word, encoding in zip(words, encoded, strict=True) if len(encoding.ids) == 1]


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return smooth random colours with a little noise, as a photograph has; (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(smooth + rng.integers(-4, 5, smooth.shape, dtype=np.int16), 0, 255).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (height, width, 3) pixels as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@functools.cache
def clip(seed: int, frames: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return decoded frames of a slowly panning picture, (frames, height, width, 3)."""
    wide = picture(seed, height, width + 4 * frames)
    return np.stack([wide[:, 4 * index : 4 * index + width] for index in range(frames)])
