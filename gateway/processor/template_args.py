"""Turns the template arguments of a request into what a chat template reads.

They come as a protobuf Struct, which loses two things that a prompt shows: whole numbers (all are doubles) and the
order of keys (a Struct has none, and may give another one in each process). So whole doubles become ints, and keys are
put into one fixed order. Who needs an order of their own, as for tools, gives that argument as JSON text.

Next: chat_template.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tessera.errors import InvalidArgument

RESERVED = ("messages", "add_generation_prompt")
JSON_ARGUMENTS = ("tools", "documents")
SWITCHES = ("enable_thinking", "add_vision_id")
"""Arguments that templates test for truth: the text "false" would count as yes, null as no."""
MAX_DEPTH = 64

# As function schemas are usually written; other keys follow in alphabetical order.
_KEY_ORDER = ("type", "function", "name", "title", "description", "parameters", "properties", "required", "enum")
_RANK = {key: rank for rank, key in enumerate(_KEY_ORDER)}
_EXACT = 2.0**53  # doubles hold every whole number up to here


def template_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's arguments.

    Args:
        arguments: a Struct's content: None, bool, float, str, list, dict.

    Raises:
        InvalidArgument: a reserved name, a tool list that is not a list of objects, a switch that is not a bool, or
            too deep; with field path.
    """
    for name in RESERVED:
        if name in arguments:
            raise InvalidArgument(
                f"The template argument {name} is set by the request's own field.",
                reason="TEMPLATE_ARGUMENT_RESERVED",
                field=f"template_args.{name}",
            )
    return {name: _argument(name, arguments[name]) for name in sorted(arguments)}


def _argument(name: str, value: Any) -> Any:
    if name in SWITCHES and not isinstance(value, bool):
        raise _invalid(name, f"{name} is true or false.")
    if name not in JSON_ARGUMENTS:
        return _ordered(value, name)
    value = _parsed(name, value) if isinstance(value, str) else _ordered(value, name)
    if value is not None and not (isinstance(value, list) and all(isinstance(entry, dict) for entry in value)):
        raise _invalid(name, f"{name} is a list of objects, or JSON text of one.")
    return value


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"{name} is not JSON: {error}") from error


def _ordered(value: Any, name: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise InvalidArgument(
            f"Nested more than {MAX_DEPTH} levels deep.", reason="NESTED_TOO_DEEPLY", field=f"template_args.{name}"
        )
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (_RANK.get(key, len(_RANK)), key))
        return {key: _ordered(value[key], name, depth + 1) for key in keys}
    if isinstance(value, list | tuple):
        return [_ordered(entry, name, depth + 1) for entry in value]
    return value


def _invalid(name: str, message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="TEMPLATE_ARGUMENT_INVALID", field=f"template_args.{name}")
