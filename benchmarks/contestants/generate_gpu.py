"""transformers on the device that the pair has: bf16, sdpa, `generate` on one batch of equally long prompts.

Its inputs are made before the clock starts, by our own code, so that neither torchvision nor a processor is needed: ids
by the tokenizer, pixels as patches in the order that its vision tower takes. The pair's time has all of that in it.

Next: benchmarks/gpu/serving_plan.py
"""

import inspect
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.timeline import Timeline
from benchmarks.workload import PAD, PROMPT_TOKENS, Request, Workload
from tessera_kernels import reference

_WARM_UP_NUMBER = 1_000_000
_PATCH, _TEMPORAL, _MERGE = 16, 2, 2
Inputs = dict[str, torch.Tensor]


class GenerateOnGpu:
    """Model of a checkpoint.

    Args:
        model_dir: the checkpoint.
        device: where it runs.
        dtype: of its weights.
    """

    def __init__(self, model_dir: Path, device: str, dtype: torch.dtype) -> None:
        from transformers import Qwen3VLForConditionalGeneration
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._workload = Workload(model_dir)
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        pad_id = self._tokenizer.token_to_id(PAD)
        assert pad_id is not None
        self._pad_id: int = pad_id
        self._device = torch.device(device)
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            model_dir, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
        model, told = loaded
        strange = {*told["missing_keys"], *told["unexpected_keys"]} - {"lm_head.weight"}  # which is the embedding
        assert not strange, f"transformers and the checkpoint differ in {sorted(strange)}"
        self._model = model.to(self._device).eval()
        self._model.generation_config.eos_token_id = None  # every answer has its full length
        self._most = 1 << 30

    def warm_up(self) -> None:
        """Run once, briefly."""
        self.run(_WARM_UP_NUMBER, 2, 2)

    def run(self, first: int, count: int, new_tokens: int) -> Timeline:
        """Answer requests as one batch; as several, one after the other, once a batch has run out of memory.

        Args:
            first: number of the first request.
            count: requests.
            new_tokens: of each.
        """
        requests = self._workload.requests(first, count)
        while True:
            try:
                return self._run(requests, new_tokens)
            except torch.OutOfMemoryError:
                if min(self._most, count) == 1:
                    raise
                self._most = -(-min(self._most, count) // 2)
            torch.cuda.empty_cache()

    def _run(self, requests: list[Request], new_tokens: int) -> Timeline:
        batches = [requests[start : start + self._most] for start in range(0, len(requests), self._most)]
        prepared = [self._prepare(batch) for batch in batches]
        clock = _Clock(self._device)
        arrivals: list[tuple[float, ...]] = []
        first_ids: list[int] = []
        for inputs in prepared:
            with torch.inference_mode():
                output = self._model.generate(
                    **inputs, max_new_tokens=new_tokens, do_sample=False, stopping_criteria=[clock]
                )
            arrivals += [tuple(clock.take())] * len(output)
            first_ids += output[:, PROMPT_TOKENS].tolist()
        return Timeline(tuple(arrivals), tuple(first_ids))

    def _prepare(self, requests: list[Request]) -> Inputs:
        ids = torch.tensor([self._tokenizer.encode(request.prompt).ids for request in requests])
        assert ids.shape[1] == PROMPT_TOKENS
        images = [np.array(Image.open(io.BytesIO(request.picture))) for request in requests]
        inputs: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.cat([self._patches(torch.from_numpy(image)) for image in images]),
            "image_grid_thw": torch.tensor([[1, len(image) // _PATCH, len(image[0]) // _PATCH] for image in images]),
        }
        if "mm_token_type_ids" in inspect.signature(self._model.forward).parameters:
            inputs["mm_token_type_ids"] = ids.eq(self._pad_id).long()  # without them positions would be others
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _patches(self, image: torch.Tensor) -> torch.Tensor:
        frames = (image.to(self._device)[None].expand(_TEMPORAL, -1, -1, -1).float() / 255 - 0.5) / 0.5
        return reference.patchify(frames, _PATCH, merge=_MERGE, temporal=_TEMPORAL).to(self._model.dtype)


class _Clock:
    """A stopping criterion that never stops and notes when it was asked, which is once after each token."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []
        self._wait()
        self._start = time.perf_counter()

    def take(self) -> list[float]:
        """Return the times of one batch, in seconds from the first one's start."""
        times, self._times = self._times, []
        return times

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._wait()  # generate itself waits for the device after each token, just below
        self._times.append(time.perf_counter() - self._start)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
