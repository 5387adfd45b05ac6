"""Settings of a process: one frozen dataclass, read once from flags and TESSERA_*.

A field `max_model_len: int = field(default=…, metadata={"help": …})` is the
flag `--max-model-len` and the variable TESSERA_MAX_MODEL_LEN; the flag wins.
Booleans are `--flag` and `--no-flag`, and true/false in the environment.
Lists (`tuple[str, ...]`) are repeated flags, and comma-separated in the environment.

Next: gateway/settings.py and worker/settings.py.
"""

from __future__ import annotations

import argparse
import os
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

PREFIX = "TESSERA_"
T = TypeVar("T")
_SUFFIXES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def load_settings(
    cls: type[T], argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None, prog: str | None = None
) -> T:
    """Return the settings of a process; exits with one line on a bad flag, as argparse does.

    Args:
        cls: a frozen dataclass.
        argv: flags without the program's name; None = sys.argv.
        environ: None = os.environ.
        prog: name shown in the help.
    """
    environ = os.environ if environ is None else environ
    parser = argparse.ArgumentParser(prog=prog, description=(cls.__doc__ or "").strip().splitlines()[0])
    hints = get_type_hints(cls)
    for item in fields(cls):  # type: ignore[arg-type]
        _add_flag(parser, item, hints[item.name], environ)
    return cls(**vars(parser.parse_args(argv)))


def parse_size(text: str) -> int:
    """Return bytes for "512", "64M", "2GiB" (powers of 1024).

    Raises:
        ValueError: it is not a size.
    """
    plain = text.strip().lower().removesuffix("ib").removesuffix("b")
    if plain and plain[-1] in _SUFFIXES:
        return int(float(plain[:-1]) * _SUFFIXES[plain[-1]])
    return int(plain)


def parse_bool(text: str) -> bool:
    """Return the truth of "1", "true", "yes", "on" and their opposites.

    Raises:
        ValueError: it is neither.
    """
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _add_flag(parser: argparse.ArgumentParser, item: Field, hint: Any, environ: Mapping[str, str]) -> None:
    flag = "--" + item.name.replace("_", "-")
    variable = PREFIX + item.name.upper()
    help_text = f"{item.metadata.get('help', '')} [{variable}]".replace("%", "%%")
    kind = _kind(hint)
    options: dict[str, Any] = {"dest": item.name, "help": help_text}
    if "choices" in item.metadata:
        options["choices"] = item.metadata["choices"]
    parse: Callable[[str], Any] = parse_size if item.metadata.get("unit") == "bytes" else kind
    if kind is bool:
        options |= {"action": argparse.BooleanOptionalAction}
        parse = parse_bool
    elif kind is tuple:
        options |= {"action": _Extend, "type": str, "metavar": "VALUE"}
        parse = _parse_list
    else:
        options |= {"type": parse, "metavar": item.metadata.get("metavar", kind.__name__.upper())}
        if "choices" in options:
            del options["metavar"]
    if variable in environ:
        options["default"] = _from_environment(parser, variable, environ[variable], parse, options.get("choices"))
    elif item.default is not MISSING:
        options["default"] = item.default
    else:
        options["required"] = True
    parser.add_argument(flag, **options)


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _from_environment(
    parser: argparse.ArgumentParser, variable: str, text: str, parse: Callable, choices: Sequence | None
) -> Any:
    try:
        value = parse(text)
    except ValueError as error:
        parser.error(f"{variable}={text}: {error}")
    if choices and value not in choices:
        parser.error(f"{variable}={text}: choose from {', '.join(map(str, choices))}")
    return value


class _Extend(argparse.Action):
    """Flags given on the command line replace the default and add up among themselves."""

    _given: tuple[str, ...] = ()

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        self._given = (*self._given, *_parse_list(values))
        setattr(namespace, self.dest, self._given)


def _kind(hint: Any) -> type:
    """Return the plain type of a field's hint: Optional[X] is X, tuple[X, ...] is tuple."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    return get_origin(hint) or hint
