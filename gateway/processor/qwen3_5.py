"""The processor of Qwen3.5 and Qwen3.5-MoE: Qwen3-VL's, with the family's own ids, tokenizer and template.

All that differs stands in the checkpoint: ids of the markers in config.json and tokenizer, combining marks among the
letters in the tokenizer's split pattern, and a template that strips what it is given, takes one system message at the
front, and opens (or closes) the model's thought. A text-only checkpoint has a flat config.json and no markers.

Source: transformers 5.23, which pairs the family with `models/qwen3_vl/processing_qwen3_vl.py`.

Next: gateway/processor/qwen3_vl.py.
"""

from __future__ import annotations

from gateway.processor.qwen3_vl import Qwen3VLProcessor


class Qwen3_5Processor(Qwen3VLProcessor):  # noqa: N801 - the family's own name
    """See `Qwen3VLProcessor`; registered apart, so that what comes to differ has its place."""
