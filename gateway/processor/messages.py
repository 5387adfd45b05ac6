"""A conversation as the processors see it: roles, texts, and places for media.

Media are places only: which picture stands there is said beside the messages, one item for each place in order.

Next: chat_template.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.errors import InvalidArgument, ServeError, Unimplemented
from tessera.modality import Modality

ROLES = ("system", "user", "assistant", "tool")
MEDIA_ROLES = ("user", "tool")


@dataclass(frozen=True)
class TextPart:
    """Text as its author typed it: what spells a special token is text."""

    text: str


@dataclass(frozen=True)
class MediaPart:
    """The place of one medium.

    Attributes:
        modality: what stands here.
        preprocessed: the request gives an item instead of a source; it only changes the path of an error.
    """

    modality: Modality
    preprocessed: bool = False

    @property
    def field(self) -> str:
        """Name of the field of the request's part."""
        return "item" if self.preprocessed else str(self.modality)


Part = TextPart | MediaPart


@dataclass(frozen=True)
class ChatMessage:
    """One turn."""

    role: str
    parts: tuple[Part, ...] = ()

    def as_template_value(self) -> dict[str, Any]:
        """Return the message as chat templates read it: a string, or typed parts where there are media.

        Some families' templates refuse a list for system and assistant; for text both forms render alike.
        """
        if not any(isinstance(part, MediaPart) for part in self.parts):
            return {"role": self.role, "content": "".join(part.text for part in self.parts)}  # type: ignore[union-attr]
        return {"role": self.role, "content": [_template_part(part) for part in self.parts]}


def _template_part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": str(part.modality)}


def media_parts(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, MediaPart]]:
    """Yield (field path, part) of each place for a medium, in prompt order."""
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            if isinstance(part, MediaPart):
                yield f"messages[{i}].parts[{j}].{part.field}", part


def check_messages(messages: Sequence[ChatMessage], modalities: frozenset[Modality]) -> None:
    """Check what can be refused before any medium is fetched.

    Raises:
        InvalidArgument: no message, an unknown role, media from system or assistant.
        Unimplemented: a modality that the model does not have.
    """
    if not messages:
        raise InvalidArgument("A chat has at least one message.", reason="FIELD_REQUIRED", field="messages")
    for i, message in enumerate(messages):
        try:
            _check_message(message, modalities)
        except ServeError as error:
            raise error.under(f"messages[{i}]") from error


def _check_message(message: ChatMessage, modalities: frozenset[Modality]) -> None:
    if message.role not in ROLES:
        raise InvalidArgument(f"A role is one of {', '.join(ROLES)}.", reason="ROLE_INVALID", field="role")
    for j, part in enumerate(message.parts):
        if isinstance(part, TextPart):
            continue
        field = f"parts[{j}].{part.field}"
        if part.modality not in modalities:
            raise Unimplemented(f"The model does not take {part.modality}.", reason="MODALITY_UNSUPPORTED", field=field)
        if message.role not in MEDIA_ROLES:
            raise InvalidArgument(
                f"Media stand in messages of {' and '.join(MEDIA_ROLES)}, not of {message.role}.",
                reason="MEDIA_ROLE",
                field=field,
            )
