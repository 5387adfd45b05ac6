"""The gateway's pool on the pictures of one request: files in, items out.

Next: weights.py
"""

import asyncio
import hashlib
import time
from pathlib import Path

from benchmarks.workload import picture, png
from gateway.media.options import ImageOptions, ServerLimits
from gateway.media.pool import MediaJob, MediaPool
from gateway.media.rules import MediaRules
from gateway.media.source import MediaBytes
from tessera.modality import Modality


class Pool:
    """A pool of so many processes.

    Args:
        model_dir: the checkpoint.
        workers: processes.
    """

    def __init__(self, model_dir: Path, workers: int) -> None:
        self._rules = MediaRules.from_dir(model_dir)
        self._runner = asyncio.Runner()
        self._pool = MediaPool(workers)
        self._runner.run(self._pool.start())

    def request_s(self, first: int, count: int, height: int, width: int) -> float:
        """Return the seconds that one request's pictures take together.

        Args:
            first: seed of the first picture.
            count: pictures.
            height: pixels of each; width likewise.
        """
        files = [png(picture(first + index, height, width)) for index in range(count)]
        jobs = [
            MediaJob(
                Modality.IMAGE,
                MediaBytes(file, hashlib.sha256(file).digest()),
                ImageOptions(),
                self._rules,
                ServerLimits(),
            )
            for file in files
        ]
        return self._runner.run(self._run(jobs))

    async def _run(self, jobs: list[MediaJob]) -> float:
        start = time.perf_counter()
        await asyncio.gather(*(self._pool.process(job) for job in jobs))
        return time.perf_counter() - start

    def close(self) -> None:
        """End the pool's processes."""
        self._runner.run(self._pool.close())
        self._runner.close()
