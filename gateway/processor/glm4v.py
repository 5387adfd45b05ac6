"""The processors of GLM-4.1V, 4.5V and 4.6V: a clip is a row of pictures, each with its time behind it.

A clip's frames are filled with the *picture's* placeholder; only the markers of a clip round them tell the two apart.
The template writes all begin and end markers, so both video layouts are one.

Source: transformers 5.23 `models/glm4v/processing_glm4v.py`, `models/glm46v/processing_glm46v.py`.

Next: gateway/media/sampling.py, then gateway/dispatch.py.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from gateway.media.rules import Family
from gateway.processor.checkpoint_files import read_json
from gateway.processor.expansion import PromptBuilder
from gateway.processor.multimodal import MultimodalProcessor
from gateway.processor.prompt import Prompt, VideoLayout
from gateway.processor.timestamps import first_times
from gateway.processor.tokenizer import Tokenizer
from gateway.processor.vision_tokens import VisionTokens
from tessera.errors import InvalidArgument
from tessera.items import MultimodalItem, PlaceholderRange
from tessera.modality import Modality


@dataclass(frozen=True)
class Glm4vTokens(VisionTokens):
    """Ids of GLM's markers.

    Attributes:
        image: the placeholder, of pictures and of frames; one of it marks a picture.
        video: marks a clip, and fills nothing.
        video_start: before a clip.
        video_end: after it.
    """

    video_start: int
    video_end: int

    spellings: ClassVar[Mapping[str, str]] = {
        "image_start": "<|begin_of_image|>",
        "image_end": "<|end_of_image|>",
        "image": "<|image|>",
        "video": "<|video|>",
        "video_start": "<|begin_of_video|>",
        "video_end": "<|end_of_video|>",
    }

    def fill_of(self, modality: Modality) -> int:
        """Return the picture's placeholder, whatever the modality."""
        return self.image


class Glm4vProcessor(MultimodalProcessor):
    """The processor of GLM-4.1V and GLM-4.5V: times are whole seconds."""

    media_family: ClassVar[Family] = "glm4v"
    tokens: Glm4vTokens

    @classmethod
    def from_dir(cls, path: Path, config: dict[str, Any], architecture: str | None = None) -> Self:
        """Load a checkpoint's processor; see MultimodalProcessor.

        Checkpoints of GLM-4.6V keep the architectures of 4.1V and 4.5V, and name their own processor: its rules hold.
        """
        if cls is Glm4vProcessor and names_glm46v(path):
            return Glm46VProcessor.from_dir(path, config, architecture)  # type: ignore[return-value]
        return super().from_dir(path, config, architecture)

    @classmethod
    def read_tokens(cls, tokenizer: Tokenizer, config: Mapping[str, Any]) -> Glm4vTokens:
        """See MultimodalProcessor."""
        return Glm4vTokens.of(tokenizer, config)

    def lay_down(
        self, builder: PromptBuilder, item: MultimodalItem, layout: VideoLayout
    ) -> tuple[PlaceholderRange, ...]:
        """Write a picture's placeholders, or a clip's pairs of frames with their times; see MultimodalProcessor."""
        lengths = self.run_lengths(item)
        if item.modality is Modality.IMAGE:
            return (builder.add_run(self.tokens.image, lengths[0]),)
        times = first_times(item.timestamps, len(lengths), self.geometry.temporal_patch_size)
        ranges = []
        for time, length in zip(times, lengths, strict=True):
            builder.add_ids((self.tokens.start,))
            ranges.append(builder.add_run(self.tokens.image, length))
            builder.add_ids((self.tokens.end,))
            builder.add_text(self.spell_time(time))
        return tuple(ranges)

    def spell_time(self, seconds: float) -> str:
        """Return what stands behind a pair of frames: its time, cut to whole seconds."""
        return str(int(seconds))

    def check_places(self, prompt: Prompt, fields: Sequence[str]) -> None:
        """Check that clips stand between the markers of a clip, and pictures do not; see MultimodalProcessor."""
        if not prompt.items:
            return
        edges = (self.tokens.video_start, self.tokens.video_end)
        places = [index for index, token in enumerate(prompt.token_ids) if token in edges]
        for field, item in zip(fields, prompt.items, strict=True):
            for span in item.ranges:
                before = bisect(places, span.offset)
                inside = before > 0 and prompt.token_ids[places[before - 1]] == self.tokens.video_start
                if inside != (item.modality is Modality.VIDEO):
                    raise InvalidArgument(
                        f"A placeholder at {span.offset} {'between' if inside else 'outside'} the markers of a clip "
                        f"is not of modality {item.modality}.",
                        reason="PLACEHOLDER_MODALITY",
                        field=f"{field}.modality",
                    )


def names_glm46v(path: Path) -> bool:
    """Return whether a checkpoint's files ask for the processor of GLM-4.6V."""
    files = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
    contents = [read_json(path / name) for name in (*files, "tokenizer_config.json")]
    named = [content.get(key) for content in contents for key in ("processor_class", "video_processor_type")]
    return any(str(name).startswith("Glm46V") for name in named)


class Glm46VProcessor(Glm4vProcessor):
    """The processor of GLM-4.6V: times have a decimal and a unit."""

    media_family = "glm46v"

    def spell_time(self, seconds: float) -> str:
        """Return what stands behind a pair of frames."""
        return f"{seconds:.1f} seconds"
