"""The table's rows in order: each name and the function that measures it.

Next: stage.py, then first_token.py
"""

from collections.abc import Callable, Mapping

from benchmarks.decode import decode_1, decode_8
from benchmarks.first_token import first_token_1
from benchmarks.load_memory import load_memory
from benchmarks.pair import pair_over_engine
from benchmarks.pool import preprocess_8_images
from benchmarks.preprocess import preprocess_image, preprocess_video
from benchmarks.row import Row
from benchmarks.stage import Stage
from benchmarks.throughput import total_8

QUESTIONS: Mapping[str, Callable[[Stage], Row]] = {
    question.__name__: question
    for question in (
        first_token_1,
        decode_1,
        decode_8,
        total_8,
        pair_over_engine,
        preprocess_image,
        preprocess_video,
        preprocess_8_images,
        load_memory,
    )
}
