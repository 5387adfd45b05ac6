"""From protobuf messages to the dataclasses of results.py, by field name; and from those to plain JSON.

Next: results.py.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

T = TypeVar("T")


def decode(cls: Callable[..., T], message: Message, **extra: Any) -> T:
    """Return the dataclass `cls` with its fields read from the fields of the same name.

    Enum values become their short lower-case names (None for UNSPECIFIED), unset optional fields and
    absent submessages None, repeated fields tuples, durations seconds. A dataclass field whose metadata
    has "source" is read from the field of that name.

    Args:
        cls: a dataclass.
        message: where to read.
        extra: fields that the message does not have.
    """
    values = dict(extra)
    descriptors = message.DESCRIPTOR.fields_by_name
    for item in fields(cls):  # type: ignore[arg-type]
        source = item.metadata.get("source", item.name)
        if item.name not in values and source in descriptors:
            values[item.name] = _field(message, descriptors[source], _element(_hints(cls)[item.name]))
    return cls(**values)


def plain(message: Message) -> dict[str, Any]:
    """Return the fields that are set as a dictionary: enums by short name, bytes as hexadecimal digits."""
    return {descriptor.name: to_json(_value(message, descriptor, dict)) for descriptor, _ in message.ListFields()}


def to_json(value: Any) -> Any:
    """Return a result as plain JSON: dataclasses as objects, bytes as hexadecimal digits, arrays by shape."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    return value


def enum_name(descriptor: Any, number: int) -> str | None:
    """Return "ready" for MODEL_STATE_READY, None for UNSPECIFIED and for values newer than this client."""
    value = descriptor.enum_type.values_by_number.get(number)
    if value is None or number == 0:
        return None
    prefix = descriptor.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower()


def _field(message: Message, descriptor: Any, of: Any) -> Any:
    repeated = descriptor.is_repeated
    if not repeated and descriptor.has_presence and not message.HasField(descriptor.name):
        return {} if of is dict else None
    return _value(message, descriptor, of)


def _value(message: Message, descriptor: Any, of: Any) -> Any:
    value = getattr(message, descriptor.name)
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return dict(value)
    if descriptor.is_repeated:
        return tuple(_one(descriptor, entry, of) for entry in value)
    return _one(descriptor, value, of)


def _one(descriptor: Any, value: Any, of: Any) -> Any:
    if descriptor.enum_type is not None:
        return enum_name(descriptor, value)
    if isinstance(value, Duration):
        return value.ToNanoseconds() / 1e9
    if isinstance(value, Message):
        if of is dict:
            return plain(value)
        return of.from_proto(value) if hasattr(of, "from_proto") else decode(of, value)
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _element(hint: Any) -> Any:
    """Return X of X, X | None, tuple[X, ...] and dict[...]."""
    if get_origin(hint) in (Union, python_types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return get_origin(hint) or hint
