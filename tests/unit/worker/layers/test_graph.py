"""Recorded computations: what they promise where nothing records.

Next: tests/unit/worker/models/test_decode_graph.py
"""

import torch

from worker.layers.graph import CudaGraph, EagerGraph, recorder_for


def test_a_replay_reads_its_inputs_anew() -> None:
    """A replay runs on what its inputs hold now."""
    given = torch.zeros(3)
    graph = EagerGraph(lambda: given + 1)
    given.fill_(4)
    assert graph.replay().tolist() == [5, 5, 5]


def test_who_records() -> None:
    """A GPU records; on the CPU there is nothing to gain."""
    assert recorder_for(torch.device("cuda")) is CudaGraph
    assert recorder_for(torch.device("cpu")) is None
