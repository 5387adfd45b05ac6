"""Drives a model by hand, one sequence or several, without the engine: blocks, slots, chunks and positions.

Next: tests/parity/test_model_text.py
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tessera.items import PlaceholderRange
from tests.positions import positions_of
from worker.layers.kv_cache import KVCache
from worker.models.base import CausalLM, EncoderInput, EncoderOutput, ForwardBatch, ItemLayout, ItemSize

BLOCK_SIZE = 8


@dataclass
class Prompt:
    """A prompt in the making: ids, its items and where they stand."""

    ids: list[int] = field(default_factory=list)
    items: list[EncoderInput] = field(default_factory=list)
    ranges: list[list[PlaceholderRange]] = field(default_factory=list)
    mm_token_type_ids: list[int] = field(default_factory=list)

    def text(self, ids: Sequence[int]) -> "Prompt":
        """Append text tokens."""
        self.ids += ids
        self.mm_token_type_ids += [0] * len(ids)
        return self

    def item(self, model: CausalLM, item: EncoderInput, between: Sequence[int] = (11, 12)) -> "Prompt":
        """Append an item's runs of placeholders, with text between those of a clip."""
        token, kind = {
            "image": (model.info.image_token_id, 1),
            "video": (model.info.video_token_id, 2),
            "time_series": (model.info.time_series_token_id, 3),
        }[item.modality]
        frame = item.size if item.grid_thw is None else ItemSize(item.modality, (1, *item.grid_thw[1:]))
        length = model.item_tokens(frame)
        ranges = []
        for index in range(1 if item.grid_thw is None else item.grid_thw[0]):
            if index:
                self.text(between)
            ranges.append(PlaceholderRange(len(self.ids), length))
            self.ids += [token] * length
            self.mm_token_type_ids += [kind] * length
        self.items.append(item)
        self.ranges.append(ranges)
        return self


class Driver:
    """One sequence on a shared cache, blocks in an order that is not ascending; `slot` is its recurrent state's."""

    def __init__(self, model: CausalLM, cache: KVCache, prompt: Prompt, blocks: Sequence[int], slot: int = 0) -> None:
        self.model, self.cache, self.prompt, self.blocks, self.slot = model, cache, prompt, list(blocks), slot
        self.ids = list(prompt.ids)
        layouts = [
            ItemLayout(item.modality, ranges, item.grid_thw)
            for item, ranges in zip(prompt.items, prompt.ranges, strict=True)
        ]
        segments, self.next_position = model.prompt_positions(len(prompt.ids), layouts)
        self.positions = positions_of(segments, len(prompt.ids))
        self.outputs: list[EncoderOutput] = model.encode(prompt.items) if prompt.items else []
        self.computed = 0

    def position(self, index: int) -> np.ndarray:
        """Return the three positions of a token of prompt or continuation."""
        if index < len(self.prompt.ids):
            return self.positions[:, index]
        return np.full(3, self.next_position + index - len(self.prompt.ids))

    def placeholder_rows(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Return (row in the chunk, item, row in the item) of the placeholders in [start, end)."""
        rows = []
        for item, ranges in enumerate(self.prompt.ranges):
            row = 0
            for span in ranges:
                for token in range(span.offset, span.end):
                    if start <= token < end:
                        rows.append((token - start, item, row))
                    row += 1
        return rows


def make_batch(sequences: Sequence[tuple[Driver, int]], all_logits: bool = False) -> ForwardBatch:
    """Return a step that computes the next tokens of each (sequence, number of tokens).

    Only the last token of a sequence has logits, unless all are wanted.
    """
    ids, positions, slots, lens, kv_lens, wanted = [], [], [], [], [], []
    rows: list[int] = []
    embeds, sides = [], []
    for driver, count in sequences:
        start, end, base = driver.computed, driver.computed + count, len(ids)
        ids += driver.ids[start:end]
        positions += [driver.position(index) for index in range(start, end)]
        slots += [driver.blocks[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(start, end)]
        lens.append(count)
        kv_lens.append(end)
        wanted += range(base, base + count) if all_logits else [base + count - 1]
        for row, item, index in driver.placeholder_rows(start, end):
            rows.append(base + row)
            embeds.append(driver.outputs[item].embeddings[index])
            side = driver.outputs[item].deepstack
            sides += [] if side is None else [side[:, index]]
        driver.computed = end
    width = max(len(driver.blocks) for driver, _ in sequences)
    device = sequences[0][0].model.device
    batch = ForwardBatch(
        input_ids=torch.tensor(ids),
        positions=torch.from_numpy(np.stack(positions, axis=1)),
        slot_mapping=torch.tensor(slots),
        block_tables=torch.tensor(
            [d.blocks + [0] * (width - len(d.blocks)) for d, _ in sequences], dtype=torch.int32, device=device
        ),
        context_lens=torch.tensor(kv_lens, dtype=torch.int32),
        query_start=torch.tensor([0, *np.cumsum(lens)], dtype=torch.int32),
        logits_indices=torch.tensor(wanted),
        query_lens=tuple(lens),
        kv_lens=tuple(kv_lens),
        state_slots=torch.tensor([driver.slot for driver, _ in sequences]),
        mm_embeds=torch.stack(embeds) if rows else None,
        mm_source=torch.tensor([(row, row + 1) for row in range(len(rows))]) if rows else None,
        mm_target=torch.tensor([(row, row + 1) for row in rows]) if rows else None,
        mm_deepstack=torch.stack(sides, dim=1) if sides else None,
    )
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(batch, name, value.to(device))
    return batch


def make_drivers(model: CausalLM, prompts: Sequence[Prompt], room: int = 32) -> list[Driver]:
    """Return a driver for each prompt on one cache, their blocks shuffled."""
    needed = [-(-(len(prompt.ids) + room) // BLOCK_SIZE) for prompt in prompts]
    slots = len(prompts) + 2 if model.state_shape else 0
    cache = model.make_kv_cache(sum(needed) + 1, BLOCK_SIZE, slots)
    cache.blocks.fill_(float("nan"))  # what was never written must never be read
    if cache.states is not None:
        cache.states.conv.fill_(float("nan"))
        cache.states.recurrent.fill_(float("nan"))
    order = np.random.default_rng(7).permutation(sum(needed) + 1).tolist()
    drivers = []
    for prompt, count in zip(prompts, needed, strict=True):
        blocks = [order.pop() for _ in range(count)]
        drivers.append(Driver(model, cache, prompt, blocks, slot=max(slots - 2 - len(drivers), 0)))
    return drivers


def run(drivers: Sequence[Driver], counts: Sequence[int], all_logits: bool = False) -> torch.Tensor:
    """Run one step of several sequences and return the logits."""
    batch = make_batch(list(zip(drivers, counts, strict=True)), all_logits)
    return drivers[0].model.forward(batch, drivers[0].cache)


def prefill(driver: Driver, chunk: int, all_logits: bool = False) -> torch.Tensor:
    """Take a prompt in chunks; the last logits, or those of all its tokens."""
    parts = []
    while (left := len(driver.prompt.ids) - driver.computed) > 0:
        parts.append(run([driver], [min(left, chunk)], all_logits))
    return torch.cat(parts) if all_logits else parts[-1]


def decode(driver: Driver, logits: torch.Tensor, count: int) -> tuple[list[int], torch.Tensor]:
    """Go on greedily from a prompt's logits; `count` tokens, and each step's logits (count, vocab)."""
    steps = [logits]
    driver.ids.append(int(logits.argmax()))
    for _ in range(count - 1):
        steps.append(run([driver], [1]))
        driver.ids.append(int(steps[-1].argmax()))
    return driver.ids[len(driver.prompt.ids) :], torch.cat(steps)


def run_together(drivers: Sequence[Driver], chunks: Sequence[int], steps: int) -> list[torch.Tensor]:
    """Prefill and decode several sequences in shared batches, and return the logits of each one's new tokens."""
    seen: list[list[torch.Tensor]] = [[] for _ in drivers]
    for _ in range(steps):
        counts = [min(chunk, len(d.ids) - d.computed) for chunk, d in zip(chunks, drivers, strict=True)]
        logits = run(drivers, counts)
        for index, driver in enumerate(drivers):
            if driver.computed == len(driver.ids):
                seen[index].append(logits[index])
                driver.ids.append(int(logits[index].argmax()))
    return [torch.stack(steps) for steps in seen]


@torch.no_grad()
def oracle_continuation(oracle: Any, inputs: Mapping[str, torch.Tensor], count: int) -> tuple[list[int], torch.Tensor]:
    """What transformers continues with; the same returns as `decode`."""
    out = oracle.generate(
        **inputs,
        max_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    return out.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(out.logits)
