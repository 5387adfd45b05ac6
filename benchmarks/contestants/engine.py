"""The bare engine: the worker's scheduler, caches and model in this process, without gateway, worker service or gRPC.

Next: served_pair.py
"""

import io
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from benchmarks.contestants.boot_engine import boot_engine
from benchmarks.timeline import Timeline
from benchmarks.workload import PAD, PICTURE_TOKENS, PROMPT_TOKENS, Request, Workload
from tessera.hashing import content_hash
from tessera.items import MultimodalItem
from tessera.modality import Modality, PayloadKind
from worker.engine.engine import Engine
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan

_WARM_UP_NUMBER = 1_000_000


class BareEngine:
    """Engine and model of a checkpoint.

    Args:
        model_dir: the checkpoint.
        threads: of torch.
    """

    def __init__(self, model_dir: Path, threads: int) -> None:
        self._workload = Workload(model_dir)
        self._tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        self._pad_id = self._tokenizer.token_to_id(PAD)
        self.engine: Engine = boot_engine(model_dir, threads)

    def warm_up(self) -> None:
        """Run once, briefly."""
        self.run(_WARM_UP_NUMBER, 2, 2)

    def run(self, first: int, count: int, new_tokens: int) -> Timeline:
        """Run requests that come together, from pixels and ids to the last token.

        Args:
            first: number of the first request.
            count: requests.
            new_tokens: of each.
        """
        prepared = [
            self._prepare(f"request-{number}", self._workload.request(number), new_tokens)
            for number in range(first, first + count)
        ]
        ids = [group.request_id for group, _ in prepared]
        tokens: dict[str, list[tuple[float, int]]] = {request_id: [] for request_id in ids}
        start = time.perf_counter()
        for group, item in prepared:
            self.engine.items.put(item)
            self.engine.add(group)
        while not self.engine.is_idle:
            updates = self.engine.step().updates
            now = time.perf_counter() - start
            for update in updates:
                assert update.failure is None, update.failure
                tokens[update.request_id] += [(now, token) for token in update.token_ids]
        return Timeline(
            tuple(tuple(moment for moment, _ in tokens[request_id]) for request_id in ids),
            tuple(tokens[request_id][0][1] for request_id in ids),
        )

    def _prepare(self, request_id: str, request: Request, new_tokens: int) -> tuple[SequenceGroup, MultimodalItem]:
        token_ids = tuple(self._tokenizer.encode(request.prompt).ids)
        assert len(token_ids) == PROMPT_TOKENS
        pixels = np.asarray(Image.open(io.BytesIO(request.picture)))[None].copy()
        grid = (1, pixels.shape[1] // 16, pixels.shape[2] // 16)
        item = MultimodalItem(
            modality=Modality.IMAGE,
            payload_kind=PayloadKind.PIXELS_U8,
            content_hash=content_hash("image", "pixels_u8", "U8", pixels, grid),
            array=pixels,
            grid_thw=grid,
        )
        place = SequenceItem(
            "image", item.content_hash, (TokenSpan(token_ids.index(self._pad_id), PICTURE_TOKENS),), grid
        )
        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        return SequenceGroup(request_id, token_ids, params, (place,)), item
