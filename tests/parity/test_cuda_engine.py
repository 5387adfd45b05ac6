"""The engine of every family on the CUDA ops, compiled for the CPU: logits, tokens, and the ops that are meant to run.

Each family's own parity with transformers is tested on the CPU path; here the same prompts run on both.

Next: kernels/README.md
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tessera_kernels import cuda, invariance
from tests.cuda_ops import emulated_library
from tests.parity.test_batch_invariance import (
    FAMILIES,
    Family,
    Mix,
    Recorder,
    make_engine,
    make_prompts,
    names_of,
    run_mix,
    submit,
)
from tests.unit.worker.models.test_vision_cuda import Seen
from worker.engine.engine import Engine
from worker.engine.sampler import Sampler
from worker.layers.graph import EagerGraph
from worker.models.encoder import VisionEncoder
from worker.models.loader import load_model

pytestmark = pytest.mark.slow

LOGITS_TOLERANCE = 2e-4  # fp32 sums in another order; logits are of order one to ten

# What every language model runs on, and what some add.
COMMON = {"add_rms_norm", "merge_embeddings", "mrope_positions", "paged_attention", "qk_norm_rope_store"}
OF_FAMILY = {
    "qwen3_5": {"causal_conv", "copy_slots", "gated_delta_rule", "gated_rms_norm"},
    "qwen3_5_moe": {"causal_conv", "copy_slots", "gated_delta_rule", "gated_rms_norm"},
}
# gate and up of experts share a product, whose end is their swiglu
OF_EXPERTS = {"choose_experts", "sort_by_expert", "grouped_linear", "combine_experts"}

# Mixes of each family and type, over prompts that together have all that a step can hold.
MIXES = 4
NAMES = ["long", "parts late", "image"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The emulator has one."""
    if emulated_library() is None:
        pytest.skip("the emulated CUDA ops are not built (make emulator)")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(engine: Engine) -> None:
    """Step to the end; nothing fails."""
    while not engine.is_idle:
        for update in engine.step().updates:
            assert update.failure is None, update.failure


class HostReads(TorchDispatchMode):
    """Notes ops whose results, or their sizes, the host waits for."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.noted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and note it where it is one of those."""
        name = func.__name__.split(".")[0]
        masks = [x for x in (args[1] if name in ("index", "index_put_") else ()) if x is not None]
        if name in self.NAMES or any(mask.dtype is torch.bool for mask in masks):
            self.noted.add(name)
        return func(*args, **(kwargs or {}))


def rows_of(path: Path, *, recorded: bool, dtype: str = "float32") -> tuple[dict[Any, torch.Tensor], Counter[str]]:
    """Run all prompts of a family together in small steps; return each token's logits and the ops that ran."""
    model = load_model(path, dtype)
    engine, _ = make_engine(model, max_batched_tokens=33, async_scheduling=recorded)
    if recorded:
        engine.runner.record(EagerGraph)
        for encoder in model.encoders:  # type: ignore[attr-defined]
            if isinstance(encoder, VisionEncoder):
                encoder.tower.record(EagerGraph)  # type: ignore[call-arg]
    prompts = make_prompts(model)
    with Seen() as seen, HostReads() as reads:
        for name in names_of(path.name.rstrip("0123456789")):
            submit(engine, name, "greedy", prompts[name], (0,))
        run(engine)
    assert not (recorded and reads.noted), f"a step waits for {reads.noted}"
    assert isinstance(engine.sampler, Recorder)
    return {(key, draw.token_id): logits for key, logits, draw in engine.sampler.seen}, seen.ops


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_cpu(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prefill in chunks that cut items, decodes beside them, states and caches give the CPU path's logits."""
    path = FAMILIES[family](tmp_path_factory.mktemp(family))
    expected, none = rows_of(path, recorded=False)
    assert not none
    with cuda.using(emulated_library()):
        found, ops = rows_of(path, recorded=True)
    assert len(found) == len(expected)
    for key, logits in expected.items():
        assert key in found, key
        assert (found[key] - logits).abs().max() < LOGITS_TOLERANCE * logits.abs().max()
    experts = "moe" in family or family == "interns1_pro"
    wanted = COMMON | OF_FAMILY.get(family, set()) | (OF_EXPERTS if experts else {"swiglu"})
    assert wanted <= set(ops), wanted - set(ops)


class Chunked(TorchDispatchMode):
    """Notes of each run of the gated delta rule whether long sequences were solved in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an op, and note what the rule was told."""
        if func.__name__.split(".")[0] == "gated_delta_rule":
            self.noted.append(bool(args[9:]) and args[9])  # what is its default is left out
        return func(*args, **(kwargs or {}))


def test_long_prompts_are_solved_in_chunks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In bf16 a prefill of 64 tokens takes the chunked rule, a decode does not, and answers stay what they are."""
    model = load_model(FAMILIES["qwen3_5"](tmp_path_factory.mktemp("chunks")), "bfloat16")
    found = []
    with cuda.using(emulated_library()):
        for recurrent in (False, True):
            engine, recorder = make_engine(model, max_batched_tokens=256)
            submit(engine, "long", "greedy", make_prompts(model)["long"], (0,))
            with Chunked() as chunked, invariance.using(recurrent):
                run(engine)
            layers = len(chunked.noted) // 9  # one step with 70 tokens, cut before its last block, and eight with few
            assert chunked.noted == [not recurrent] * layers + [False] * (len(chunked.noted) - layers)
            found.append(recorder.seen)
    for (key, logits, draw), (other_key, expected, other_draw) in zip(*found, strict=True):
        assert (key, draw) == (other_key, other_draw)
        assert (logits - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: needs a CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_but_the_fetch_waits_for_the_device(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of a day's steps, images, prefill, decodes and draws alike, none synchronises but where tokens are fetched."""
    model = load_model(FAMILIES[family](tmp_path_factory.mktemp(family)), "bfloat16", device=torch.device("cuda", 0))
    engine, _ = make_engine(model, max_batched_tokens=33, async_scheduling=True)
    engine.sampler = Sampler()
    engine.runner.record()
    prompts = make_prompts(model)
    for day in ("warm-up", "day"):  # libraries may wait at their first calls
        torch.cuda.set_sync_debug_mode("error" if day == "day" else "default")
        try:
            for name in names_of(family):
                submit(engine, f"{name}/{day}", name, prompts[name], (0,))
            run(engine)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mix_changes_no_bit(family: str, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In the batch-invariant mode every logit and draw of random mixes is, bit for bit, what its sequence gives alone.

    Mixes draw neighbours, the budget of a step, cache states, few or many blocks and so preemptions, and forks; steps
    are recorded in every other one.
    """
    with cuda.using(emulated_library()), invariance.using(True):
        made = Family(load_model(FAMILIES[family](tmp_path_factory.mktemp(family)), dtype))
        made.prompts = {name: made.prompts[name] for name in NAMES}
        alone = made.alone("cuda")
        for number in range(MIXES):
            mix = replace(Mix.draw(number + 1000, [family], NAMES), threads=1, turns=1)
            _, recorder = run_mix(mix, made, EagerGraph if number % 2 else None)
            assert recorder.seen
            for key, logits, draw in recorder.seen:
                expected = alone[key]
                assert torch.equal(logits, expected.logits), (key, mix, (logits - expected.logits).abs().max())
                assert draw == (expected.token, expected.logprob), (key, mix)
