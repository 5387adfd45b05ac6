"""What a family's processor must know of its placeholder tokens, whatever it calls them.

Next: vision_tokens.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition
from tessera.modality import Modality


class MediaTokens(Protocol):
    """The placeholder ids of one checkpoint."""

    @property
    def markers(self) -> Mapping[int, Modality]:
        """Modality by the id that stands for one whole item in a prompt that is not expanded."""

    def fill_of(self, modality: Modality) -> int:
        """Return the id that fills the ranges of an item of a modality; need not be its marker."""


class NoMediaTokens:
    """The tokens of a checkpoint that takes text alone."""

    markers: Mapping[int, Modality] = {}

    def fill_of(self, modality: Modality) -> int:
        """Raise KeyError: there are none."""
        raise KeyError(modality)


def special_id(tokenizer: Tokenizer, config: Mapping[str, Any], name: str, spelling: str, role: str = "") -> int:
    """Return the id of a marker, which the tokenizer and config.json must agree on.

    Args:
        tokenizer: of the checkpoint.
        config: config.json; its field `{name}_token_id` may be absent.
        name: of the field, such as "image".
        spelling: of the special token, unless the tokenizer names another one for the role.
        role: in tokenizer_config.json; `{name}_token` unless given.

    Raises:
        FailedPrecondition: the token is missing, not special, or another id in config.json.
    """
    spelling = tokenizer.named_tokens.get(role or f"{name}_token", spelling)
    token_id = tokenizer.special_tokens.get(spelling)
    if token_id is None or config.get(f"{name}_token_id", token_id) != token_id:
        raise FailedPrecondition(
            f"The tokenizer's special token {spelling} is not config.json's {name}_token_id.",
            reason="CHECKPOINT_INCONSISTENT",
        )
    return token_id
