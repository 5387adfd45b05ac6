"""Recorded decode steps: what they are given, and that padding shows nowhere.

Next: worker/models/decode_graph.py
"""

from dataclasses import replace

import pytest
import torch

from tests.dispatch import Calls
from worker.layers.graph import EagerGraph
from worker.layers.kv_cache import KVCache
from worker.models import decode_graph
from worker.models.base import ForwardBatch
from worker.models.decode_graph import DecodeGraphs

BLOCK_SIZE, MAX_LEN = 4, 2000


def decode_batch(lengths: tuple[int, ...]) -> ForwardBatch:
    """One new token for each sequence, whose contexts have these lengths."""
    count = len(lengths)
    return ForwardBatch(
        input_ids=torch.arange(count) + 7,
        positions=torch.arange(3 * count).view(3, count),
        slot_mapping=torch.arange(count) + 100,
        block_tables=torch.full((count, -(-max(lengths) // BLOCK_SIZE) + 1), 3, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        query_start=torch.arange(count + 1, dtype=torch.int32),
        logits_indices=torch.arange(count),
        query_lens=(1,) * count,
        kv_lens=lengths,
    )


class Model:
    """Notes the batches that it is given, and answers with each row's id and context."""

    def __init__(self) -> None:
        self.seen: list[ForwardBatch] = []

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Answer one row for each logit."""
        tensors = {name: value.clone() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        self.seen.append(replace(batch, **tensors))
        rows = batch.logits_indices
        return torch.stack((batch.input_ids[rows], batch.context_lens[rows].long()), dim=1).float()


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings of 1, 2 and 4 sequences, and of the most."""
    monkeypatch.setattr(decode_graph, "BATCH_SIZES", (1, 2, 4, 8))


def make() -> tuple[Model, DecodeGraphs]:
    """Recordings for up to 6 sequences."""
    model = Model()
    cache = KVCache(1, 8, BLOCK_SIZE, 1, 4, torch.float32, "cpu")
    return model, DecodeGraphs(model.forward, cache, 6, MAX_LEN, EagerGraph)


@pytest.mark.usefixtures("few_sizes")
def test_a_step_is_padded_to_the_next_size() -> None:
    """Three sequences run as four; the fourth writes nowhere, has no rows and no context, and is not answered."""
    model, graphs = make()
    logits = graphs(decode_batch((5, 9, 1)))
    assert logits.tolist() == [[7, 5], [8, 9], [9, 1]]
    [seen] = model.seen
    assert seen.slot_mapping.tolist() == [100, 101, 102, -1]
    assert seen.query_start.tolist() == [0, 1, 2, 3, 3]
    assert seen.context_lens.tolist() == [5, 9, 1, 0]
    assert seen.kv_lens == (1024,) * 4 and seen.block_tables.shape == (4, 256)
    assert seen.block_tables[:3, :3].eq(3).all()


@pytest.mark.usefixtures("few_sizes")
def test_sizes_are_met_again() -> None:
    """A recording serves every step up to its size and context; a larger one leaves nothing behind in it."""
    model, graphs = make()
    graphs(decode_batch((3, 4, 5, 6)))
    assert graphs(decode_batch((2, 1500, 9))).tolist() == [[7, 2], [8, 1500], [9, 9]]
    assert graphs(decode_batch((8, 1, 2))).tolist() == [[7, 8], [8, 1], [9, 2]]
    assert model.seen[-1].slot_mapping.tolist() == [100, 101, 102, -1]
    assert sorted(graphs._recordings) == [(4, 1024), (4, 2000)]


@pytest.mark.usefixtures("few_sizes")
def test_all_sizes_are_prepared() -> None:
    """Each batch size up to the most sequences is recorded for each length of context up to the longest."""
    _, graphs = make()
    graphs.prepare()
    assert sorted(graphs._recordings) == [(size, context) for size in (1, 2, 4, 6) for context in (1024, 2000)]


def test_few_sequences_are_not_padded() -> None:
    """A padded row costs a small step of experts most, so up to eight sequences each number has its recording."""
    assert set(range(1, 9)) <= set(decode_graph.BATCH_SIZES)
    for count in range(1, 7):
        model, graphs = make()
        graphs(decode_batch((5,) * count))
        assert len(model.seen[0].query_lens) == count


@pytest.mark.usefixtures("few_sizes")
@pytest.mark.parametrize("count", [2, 3])
def test_inputs_go_in_by_three_launches(count: int) -> None:
    """Numbers of either width in one launch each, block tables in another, whether rows are left over or not."""
    _, graphs = make()
    batch = decode_batch(tuple(range(1, count + 1)))
    graphs(batch)
    recording = graphs._recordings[2 * (count // 2 + count % 2), 1024]
    with Calls() as calls:
        graphs._inputs.fill(recording.batch, batch)
    assert {name: n for name, n in calls.names.items() if "copy" in name or "fill" in name} == {
        "_foreach_copy_": 2,
        "copy_": 1,
    }


def test_recordings_share_the_memory_of_their_logits() -> None:
    """All sizes leave their logits in the same place, which no recording keeps for itself."""
    _, graphs = make()
    one, four = graphs(decode_batch((5,))), graphs(decode_batch((3, 4, 5, 6)))
    assert one.data_ptr() == four.data_ptr()
    assert one.tolist() == four[:1].tolist() == [[7, 3]]


def test_only_decode_steps_are_taken() -> None:
    """A step with a prompt's chunk, with items, or with a sequence that does not sample runs as it is."""
    batch = decode_batch((4, 5))
    assert DecodeGraphs.takes(batch)
    assert not DecodeGraphs.takes(replace(batch, logits_indices=torch.tensor([1])))
    assert not DecodeGraphs.takes(replace(batch, mm_embeds=torch.zeros(1, 4)))
    assert not DecodeGraphs.takes(replace(batch, query_lens=(2,), logits_indices=torch.tensor([1])))
