"""Log lines of the programs: one JSON object each, made short for people.

Next: child.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

HIDDEN = frozenset({"timestamp", "level", "service", "event", "logger", "exception"})
SERIOUS = ("error", "critical")


def parse(line: str) -> dict[str, Any] | None:
    """Return the fields of a JSON log line; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except json.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) and "event" in fields else None


def for_people(name: str, line: str) -> str:
    """Return "12:00:01 gateway  event key=value" for a log line; other lines with the program's name."""
    fields = parse(line)
    if fields is None:
        return f"         {name:<9} {line}"
    time = str(fields.get("timestamp", ""))[11:19]
    level = fields.get("level", "")
    mark = f"{level.upper()} " if level in (*SERIOUS, "warning") else ""
    return f"{time:<8} {name:<9} {mark}{told(fields)}"


def told(fields: dict[str, Any]) -> str:
    """Return a log line's event and fields; of an exception, its type and text."""
    parts = [str(fields["event"])]
    parts += [f"{key}={value}" for key, value in fields.items() if key not in HIDDEN]
    frames = fields.get("exception")
    if isinstance(frames, list) and frames and isinstance(frames[0], dict):
        parts.append(f"{frames[0].get('exc_type')}: {frames[0].get('exc_value')}")
    return " ".join(parts)


def last_words(lines: Iterable[str]) -> str:
    """Return the line that says best why a program ended: its last error, else its last line."""
    kept = [line for line in lines if line.strip()]
    for line in reversed(kept):
        fields = parse(line)
        if fields is not None and fields.get("level") in SERIOUS:
            return told(fields)
    if not kept:
        return "it said nothing"
    fields = parse(kept[-1])
    return told(fields) if fields is not None else kept[-1].strip()
