"""Conversations to labelled batches: only the tokens of answers carry a label.

Next: models/shapes/train.py
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from preprocess import Inputs, Processor, collate
from questions import Conversation, conversation
from torch.utils.data import IterableDataset

Batch = dict[str, torch.Tensor]
IGNORED = -100


def answer_labels(ids: list[int], start: list[int], end: int) -> list[int]:
    """Labels (num_tokens,): the tokens of each assistant turn with its end marker, IGNORED elsewhere."""
    labels, at = [IGNORED] * len(ids), 0
    while at < len(ids):
        if ids[at : at + len(start)] != start:
            at += 1
            continue
        at += len(start)
        while True:
            labels[at] = ids[at]
            at += 1
            if ids[at - 1] == end:
                break
    return labels


class Encoder:
    """Conversations to labelled batches."""

    def __init__(self, checkpoint: Path) -> None:
        self.processor = Processor(checkpoint)
        tokens = self.processor.tokenizer
        self.start = tokens("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
        self.end = tokens.convert_tokens_to_ids("<|im_end|>")
        self.image, self.video = tokens.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])

    def inputs(self, talk: Conversation) -> Inputs:
        """The whole conversation, answers included."""
        return self.processor(talk.messages(len(talk.turns)), add_generation_prompt=False)

    def batch(self, items: list[Inputs]) -> Batch:
        """collate() and labels (batch, max_tokens)."""
        tensors = collate(items, self.image, self.video)
        labels = torch.full_like(tensors["input_ids"], IGNORED)
        for row, item in enumerate(items):
            labels[row, : len(item.ids)] = torch.tensor(answer_labels(item.ids, self.start, self.end))
        return tensors | {"labels": labels}


class Stream(IterableDataset):
    """Endless steps, each a list of micro-batches of like length (sorted, so that little is padding)."""

    def __init__(self, encoder: Encoder, seed: int, batch: int, micro: int, mixture: dict[str, float]) -> None:
        self.encoder, self.seed, self.size, self.micro, self.mixture = encoder, seed, batch, micro, mixture

    def __iter__(self) -> Iterator[list[Batch]]:
        rng = np.random.default_rng(self.seed)
        while True:
            items = [self.encoder.inputs(conversation(rng, mixture=self.mixture)) for _ in range(self.size)]
            items.sort(key=lambda item: len(item.ids))
            size = self.size // self.micro
            yield [self.encoder.batch(items[at : at + size]) for at in range(0, self.size, size)]


def quiet_worker(_: int) -> None:
    """The generator of data stays behind everything else on the machine."""
    os.nice(5)
    torch.set_num_threads(1)
