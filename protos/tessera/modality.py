"""The kinds of media, equal and hashing as their lower-case names.

Next: items.py.
"""

from __future__ import annotations

from enum import StrEnum

from tessera.v1 import types_pb2 as pb


class Modality(StrEnum):
    """What an item is; `Modality.IMAGE == "image"`."""

    IMAGE = "image"
    VIDEO = "video"
    TIME_SERIES = "time_series"
    AUDIO = "audio"

    @classmethod
    def from_proto(cls, value: int) -> Modality:
        """Return the modality of a protobuf enum value.

        Raises:
            ValueError: for UNSPECIFIED and for values that are not known.
        """
        name = pb.Modality.Name(value)  # type: ignore[arg-type]
        return cls(name.removeprefix("MODALITY_").lower())

    def to_proto(self) -> pb.Modality:
        """Return the protobuf enum value."""
        return pb.Modality.Value(f"MODALITY_{self.name}")  # type: ignore[return-value]


VISUAL = frozenset({Modality.IMAGE, Modality.VIDEO})
"""What a vision encoder takes."""


class PayloadKind(StrEnum):
    """What the bytes of an item's tensor are; see PayloadKind in types.proto."""

    PIXELS_U8 = "pixels_u8"
    PATCHES = "patches"
    SAMPLES = "samples"
    EMBEDDINGS = "embeddings"

    @classmethod
    def from_proto(cls, value: int) -> PayloadKind:
        """Return the kind of a protobuf enum value.

        Raises:
            ValueError: for UNSPECIFIED and for values that are not known.
        """
        name = pb.PayloadKind.Name(value)  # type: ignore[arg-type]
        return cls(name.removeprefix("PAYLOAD_KIND_").lower())

    def to_proto(self) -> pb.PayloadKind:
        """Return the protobuf enum value."""
        return pb.PayloadKind.Value(f"PAYLOAD_KIND_{self.name}")  # type: ignore[return-value]
