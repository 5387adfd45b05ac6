"""The processor of Qwen3-VL: an image is one run of pads, a clip one timestamp and one run for each pair of frames.

Source: transformers 5.23 `models/qwen3_vl/processing_qwen3_vl.py` (and 4.57's for `VideoLayout.V4`).

Next: glm4v.py, then gateway/dispatch.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.processor.expansion import Piece, PromptBuilder, unwrap
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.prompt import VideoLayout
from gateway.processor.timestamps import patch_times
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.items import MultimodalItem, PlaceholderRange
from tessera.modality import Modality


class Qwen3VLProcessor(MultimodalProcessor):
    """Qwen3-VL's processor, and that of the families which write their media as it does."""

    tokens: VisionTokens

    @classmethod
    def read_tokens(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> VisionTokens:
        """See MultimodalProcessor."""
        return VisionTokens.of(tokenizer, config)

    def prepare_pieces(self, pieces: list[Piece], layout: VideoLayout) -> list[Piece]:
        """Take the template's start and end from round a clip where the layout is 4.57's."""
        if layout is VideoLayout.V5 or Modality.VIDEO not in self.modalities:
            return pieces
        return unwrap(pieces, Modality.VIDEO, self.tokens.start, self.tokens.end)

    def lay_down(
        self, builder: PromptBuilder, item: MultimodalItem, layout: VideoLayout
    ) -> tuple[PlaceholderRange, ...]:
        """Write an image's pads, or a clip's timed pairs; see MultimodalProcessor."""
        lengths = self.run_lengths(item)
        if item.modality is Modality.IMAGE:
            return (builder.add_run(self.tokens.image, lengths[0]),)
        times = patch_times(item.timestamps, len(lengths), self.geometry.temporal_patch_size)
        ranges = []
        for time, length in zip(times, lengths, strict=True):
            builder.add_text(f"<{time:.1f} seconds>")
            builder.add_ids((self.tokens.start,))
            ranges.append(builder.add_run(self.tokens.video, length))
            builder.add_ids((self.tokens.end,))
        return tuple(ranges)
