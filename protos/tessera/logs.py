"""Log set-up: one JSON line an event, on stderr.

Events are nouns with fields; `request_id` is bound once through contextvars.
Prompts, images, tokens and URLs are never logged.

Next: interceptors.py.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs(service: str, level: str = "info", *, json: bool = True) -> None:
    """Set up structlog for this process; the standard library's loggers go the same way.

    Args:
        service: "gateway" or "worker"; on every line.
        level: "debug", "info", "warning" or "error".
        json: False writes lines for people.
    """
    shared = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _service_adder(service),
        structlog.processors.StackInfoRenderer(),
    ]
    if json:
        # Without locals: they hold prompts and pixels.
        plain = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(plain))
    renderer = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def _service_adder(service: str):  # type: ignore[no-untyped-def]
    def add(_logger, _name, event):  # type: ignore[no-untyped-def]
        event["service"] = service
        return event

    return add
