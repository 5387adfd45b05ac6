"""Renders a conversation with the checkpoint's own chat template, special tokens the template's alone.

The result is cut at the special tokens that the template wrote; everything between them is plain text, to be encoded
whole, so that the ids are those of Hugging Face's `apply_chat_template` plus tokenizer.

Next: expansion.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from gateway.processor.checkpoint_files import read_chat_template
from gateway.processor.jinja_env import make_environment
from gateway.processor.messages import ChatMessage
from gateway.processor.shield import Shield, SpecialSpellings
from gateway.processor.tokenizer import Tokenizer
from tessera.errors import FailedPrecondition, InvalidArgument

_MAX_ERROR_CHARS = 300
_SPARE_CHARS = 1 << 20  # what a template may write of its own
_MAX_COPIES = 8  # how often it may write what it was given
# What Python raises inside a template that is given values of a kind which it does not expect.
_VALUE_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class RenderedChat:
    """A rendered conversation.

    Attributes:
        text: the prompt as text, before expansion.
        pieces: the same, cut at the template's special tokens: text (to be encoded without them) and ids.
    """

    text: str
    pieces: tuple[str | int, ...]


class ChatTemplate:
    """One checkpoint's template, compiled; holds no state of a request.

    Args:
        source: Jinja source.
        tokenizer: says which tokens are special, and names those that a template may read (`eos_token`, ...).
        now: the clock of templates that print the date.

    Raises:
        FailedPrecondition: the source does not compile.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, *, now: Callable[[], datetime] = datetime.now) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._spellings = SpecialSpellings(tokenizer.special_tokens)
        try:
            self._template = make_environment(now).from_string(source)
        except jinja2.TemplateError as error:
            raise FailedPrecondition(
                f"The chat template does not compile: {error}", reason="TEMPLATE_INVALID"
            ) from error

    @classmethod
    def from_dir(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate | None:
        """Load a checkpoint's template; None where it has none."""
        source = read_chat_template(Path(path))
        return None if source is None else cls(source, tokenizer)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        arguments: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> RenderedChat:
        """Render a conversation.

        Args:
            messages: the whole history.
            arguments: of the template, as `template_arguments` gives them; None and empty are alike.
            add_generation_prompt: end as if the model were about to speak.

        Raises:
            InvalidArgument: TEMPLATE_ERROR: the template refuses the conversation or its arguments.
        """
        values = [message.as_template_value() for message in messages]
        shield = Shield(self._spellings, values, dict(arguments or {}), self._source)
        variables: dict[str, Any] = {"tools": None, "documents": None, **self._tokenizer.named_tokens}
        variables |= shield.cover(dict(arguments or {}))
        variables |= {"messages": shield.cover(values), "add_generation_prompt": add_generation_prompt}
        try:
            rendered = "".join(_bounded(self._template.generate(variables), _limit(variables)))
        except jinja2.TemplateError as error:
            raise _template_error(shield.uncover(str(error))) from error
        except _VALUE_ERRORS as error:
            raise _template_error(shield.uncover(f"{type(error).__name__}: {error}")) from error
        pieces = self._tokenizer.split_special(rendered)
        return RenderedChat(
            text=shield.uncover(rendered),
            pieces=tuple(shield.uncover(piece) if isinstance(piece, str) else piece for piece in pieces),
        )


def _limit(variables: Mapping[str, Any]) -> int:
    return _MAX_COPIES * _count_chars(variables) + _SPARE_CHARS


def _count_chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _count_chars(entry) for key, entry in value.items())
    if isinstance(value, list):
        return sum(map(_count_chars, value))
    return 8


def _bounded(chunks: Iterator[str], limit: int) -> Iterator[str]:
    """Pass chunks on until they are more than any sensible template writes."""
    for chunk in chunks:
        limit -= len(chunk)
        if limit < 0:
            raise InvalidArgument("The chat template writes too much.", reason="TEMPLATE_ERROR", field="messages")
        yield chunk


def _template_error(text: str) -> InvalidArgument:
    if len(text) > _MAX_ERROR_CHARS:
        text = text[:_MAX_ERROR_CHARS] + "..."
    return InvalidArgument(
        f"The chat template refuses the conversation: {text}", reason="TEMPLATE_ERROR", field="messages"
    )
