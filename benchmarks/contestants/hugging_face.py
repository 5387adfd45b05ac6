"""transformers as it is usually run: fp32, sdpa, `generate` on a padded batch.

Next: engine.py
"""

import io
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.timeline import Timeline
from benchmarks.workload import PROMPT_TOKENS, Request, Workload
from tests.torchvision_stub import load_hf_processor

_WARM_UP_NUMBER = 1_000_000


class HuggingFace:
    """Processor and model of a checkpoint.

    Args:
        model_dir: the checkpoint.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._workload = Workload(model_dir)
        # torchvision's stand-in must be there before transformers looks for it
        self._processor = load_hf_processor(model_dir)
        from transformers import Qwen3VLForConditionalGeneration

        self._model = Qwen3VLForConditionalGeneration.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._model.generation_config.eos_token_id = None  # every answer has its full length

    def warm_up(self) -> None:
        """Run once, briefly."""
        self.run(_WARM_UP_NUMBER, 2, 2)

    def run(self, first: int, count: int, new_tokens: int) -> Timeline:
        """Answer requests as one padded batch, from files and text to the last token.

        Args:
            first: number of the first request.
            count: requests.
            new_tokens: of each.
        """
        requests = self._workload.requests(first, count)
        clock = _Clock()
        inputs = self._prepare(requests)
        with torch.inference_mode():
            output = self._model.generate(
                **inputs, max_new_tokens=new_tokens, do_sample=False, stopping_criteria=[clock]
            )
        first_ids = tuple(int(token) for token in output[:, PROMPT_TOKENS])
        return Timeline((tuple(clock.times),) * count, first_ids)

    def _prepare(self, requests: list[Request]) -> dict[str, Any]:
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}]
        texts = []
        for request in requests:
            messages[0]["content"][1]["text"] = request.text  # type: ignore[index]
            texts.append(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        images = [Image.open(io.BytesIO(request.picture)) for request in requests]
        inputs = self._processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        assert "mm_token_type_ids" in inputs, "without them generate() would use other positions"
        assert inputs["input_ids"].shape[1] == PROMPT_TOKENS
        return dict(inputs)


class _Clock:
    """A stopping criterion that never stops and notes when it was asked: once after each token."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter() - self._start)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
