"""From settings to an engine that has run its first step; everything heavy is imported and done here.

Next: worker/engine/sizing.py
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog
import torch

from tessera.checkpoint import resolve_model_dir
from tessera.errors import FailedPrecondition
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from tessera_kernels import cuda, invariance, ops
from worker.engine.config import EngineConfig
from worker.engine.engine import Engine
from worker.engine.memory_needs import MemoryNeeds
from worker.engine.memory_profile import profile_memory
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.engine.sizing import EngineOptions, checked_options, size_engine, step_limits
from worker.memory import free_bytes, meter_for
from worker.models.base import CausalLM, ItemSize
from worker.models.loader import load_model
from worker.settings import WorkerSettings

log = structlog.get_logger(__name__)
Report = Callable[[str, float], None]
"""Called with "downloading", "loading" or "warming", and the share of it that is done."""

WARM_UP_TOKENS = 8


def boot(settings: WorkerSettings, report: Report) -> tuple[Engine, Path]:
    """Load the model, size and allocate the caches, run a first step; return the engine and the model's directory.

    Raises:
        ServeError: there is no such model, or --batch-invariant cannot hold.
        CheckpointError: the checkpoint cannot be served.
        SizingError: the limits do not fit.
    """
    start = time.monotonic()
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    device = pick_device(settings.device)
    invariance.switch(settings.batch_invariant)
    if settings.batch_invariant:
        dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        refuse_variance(invariance.obstacle(dtype, device))
    if not Path(settings.model).is_dir():
        report("downloading", 0.0)
    model_dir = resolve_model_dir(settings.model)
    report("loading", 0.0)
    model = load_model(
        model_dir,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        device=device,
        disable_vision_encoder=settings.disable_vision_encoder,
        progress=lambda share: report("loading", share),
    )
    if settings.batch_invariant:
        refuse_variance(invariance.head_obstacle(model.head_dim, model.dtype, model.device))
    loaded = time.monotonic()
    cuda.wait_after_launches(settings.check_launches)
    if not settings.check_launches:
        model.record()  # before memory is shared out: recordings keep theirs
    config = configure(model, settings)
    engine = Engine(config, model)
    report("warming", 0.0)
    log_ops(model)
    warm_up(engine)
    if not settings.check_launches:
        engine.runner.record()
    log_ready(engine, load_s=loaded - start, warm_up_s=time.monotonic() - loaded)
    return engine, model_dir


def pick_device(name: str) -> torch.device:
    """Return the device of a flag; "auto" is a GPU where there is one.

    Raises:
        FailedPrecondition: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise FailedPrecondition(
            "No GPU is visible to torch for --device cuda; use --device cpu, or a CUDA build of torch with a driver.",
            reason="NO_GPU",
        )
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def log_ops(model: CausalLM) -> None:
    """Log which implementation each op has, one line for each implementation and reason."""
    by_choice: dict[ops.Choice, list[str]] = {}
    for op, choice in ops.implementations(model.dtype, model.device, model.head_dims).items():
        by_choice.setdefault(choice, []).append(op)
    for choice, names in by_choice.items():
        log.info("ops_chosen", implementation=choice.implementation, reason=choice.reason, ops=names)


def log_ready(engine: Engine, *, load_s: float, warm_up_s: float) -> None:
    """Log what serves, and what memory it took."""
    model, config, cache = engine.model, engine.config, engine.runner.kv_cache
    log.info(
        "model_ready",
        architecture=model.info.architecture,
        device=str(model.device),
        dtype=model.info.dtype,
        threads=torch.get_num_threads(),
        batch_invariant=invariance.enabled(),
        async_scheduling=config.async_scheduling,
        weight_bytes=model.weight_bytes,
        kv_cache_bytes=cache.size_bytes,
        num_blocks=config.num_blocks,
        max_model_len=config.max_model_len,
        encoder_cache_bytes=config.encoder_cache_bytes,
        state_bytes=cache.states.size_bytes if cache.states else 0,
        free_bytes=free_bytes(model.device),
        load_s=round(load_s, 3),
        warm_up_s=round(warm_up_s, 3),
    )


def refuse_variance(obstacle: str | None) -> None:
    """Refuse to start where something is in the way of --batch-invariant.

    Raises:
        FailedPrecondition: with what it is.
    """
    if obstacle is not None:
        raise FailedPrecondition(
            f"--batch-invariant cannot hold here: {obstacle}.", reason="BATCH_INVARIANCE_UNAVAILABLE"
        )


def engine_options(settings: WorkerSettings) -> EngineOptions:
    """Return the engine's part of the settings."""
    return EngineOptions(**{name: getattr(settings, name) for name in EngineOptions.__dataclass_fields__})


def configure(model: CausalLM, settings: WorkerSettings) -> EngineConfig:
    """Return the limits of a model's engine; see `size_engine`.

    Raises:
        SizingError: the limits do not fit.
    """
    options = checked_options(engine_options(settings))
    needs = measure_needs(model, options, records=not settings.check_launches)
    return size_engine(model, options, free_bytes(model.device), needs)


def measure_needs(model: CausalLM, options: EngineOptions, *, records: bool) -> MemoryNeeds | None:
    """Run the largest steps and log what they take; None on the CPU, where estimates serve.

    Raises:
        SizingError: they run out of memory.
    """
    meter = meter_for(model.device)
    if meter is None:
        return None
    start = time.monotonic()
    needs = profile_memory(model, step_limits(model, options, free_bytes(model.device)), meter, records=records)
    log.info(
        "memory_profiled",
        encode_mib=needs.encode_bytes >> 20,
        step_mib=needs.step_bytes >> 20,
        recordings_mib=needs.recordings_bytes >> 20,
        libraries_mib=needs.libraries_bytes >> 20,
        profile_s=round(time.monotonic() - start, 3),
    )
    return needs


def warm_up(engine: Engine) -> None:
    """Run a short prompt with one item of each modality to its end.

    On an accelerator the items are the worst legal ones and the prompt fills a step, so that running out of memory
    shows now. The CPU, where a large step takes minutes and memory is not so tight, gets the smallest.

    Raises:
        RuntimeError: the engine does not answer.
    """
    model, config = engine.model, engine.config
    on_cpu = model.device.type == "cpu"
    for number, size in enumerate(model.worst_items(1 if on_cpu else config.max_model_len - WARM_UP_TOKENS)):
        _run_alone(engine, f"warm-up-{number}", replace(size, channels=1) if on_cpu else size)
    length = WARM_UP_TOKENS if on_cpu else min(config.max_batched_tokens, config.max_model_len - 2)
    _run_alone(engine, "warm-up", None, max(1, min(length, config.max_model_len - 2)))


def _dummy_item(model: CausalLM, size: ItemSize) -> MultimodalItem:
    dummy = model.dummy_input(size)
    item = MultimodalItem(
        Modality(size.modality),
        PayloadKind(dummy.kind),
        b"",
        "F32" if dummy.kind == "samples" else "U8",
        dummy.tensor.numpy(),
        grid_thw=size.grid_thw,
        sampling_rate_hz=size.sampling_rate_hz,
    )
    return replace(item, content_hash=item.compute_hash())


def _run_alone(engine: Engine, name: str, size: ItemSize | None, num_tokens: int = 1) -> None:
    placed: tuple[SequenceItem, ...] = ()
    if size is not None:
        num_tokens = engine.model.item_tokens(size)
        if num_tokens + 1 > min(engine.config.max_model_len, engine.config.max_item_tokens):
            return
        item = _dummy_item(engine.model, size)
        placed = (SequenceItem(item.modality, item.content_hash, (TokenSpan(0, num_tokens),), item.grid_thw),)
        engine.items.put(item)
    tokens = tuple(np.arange(num_tokens, dtype=np.int64) % engine.model.vocab_size)
    params = SamplingParams(max_tokens=min(2, engine.config.max_model_len - num_tokens), ignore_eos=True)
    # A salt of its own: what it leaves in the caches is never found.
    engine.add(SequenceGroup(name, tuple(map(int, tokens)), params, placed, cache_salt=os.urandom(16)))
    while not engine.is_idle:
        for update in engine.step().updates:
            if update.failure is not None:
                raise RuntimeError("the warm-up step failed; the log says why")
