"""The Python client of Tessera: `Client`, `AsyncClient`, and the command `tessera`.

Next: sync_client.py, then requests.py and results.py; the command starts in cli/program.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera_client.async_client import AsyncClient, AsyncStream
    from tessera_client.errors import (
        Cancelled,
        DeadlineExceeded,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        ServerUnreachable,
        TesseraError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from tessera_client.items import Item
    from tessera_client.parts import (
        Image,
        MediaId,
        Message,
        ServerPath,
        Text,
        TimeSeries,
        Video,
        assistant,
        system,
        tool,
        user,
    )
    from tessera_client.results import (
        ChatResult,
        Choice,
        Delta,
        GenerateResult,
        MediaReport,
        Model,
        PrepareResult,
        SamplingPlan,
        UploadResult,
        Usage,
    )
    from tessera_client.sync_client import Client, Stream
    from tessera_client.uploads import UploadProgress

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "ChatResult",
    "Choice",
    "Client",
    "DeadlineExceeded",
    "Delta",
    "FailedPrecondition",
    "GenerateResult",
    "Image",
    "Internal",
    "InvalidArgument",
    "Item",
    "MediaId",
    "MediaReport",
    "Message",
    "Model",
    "NotFound",
    "PermissionDenied",
    "PrepareResult",
    "ResourceExhausted",
    "SamplingPlan",
    "ServerPath",
    "ServerUnreachable",
    "Stream",
    "TesseraError",
    "Text",
    "TimeSeries",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UploadProgress",
    "UploadResult",
    "Usage",
    "Video",
    "assistant",
    "system",
    "tool",
    "user",
]

# In the order in which they import each other.
_MODULES = ("errors", "parts", "items", "uploads", "results", "sync_client", "async_client")


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more: the command starts fast, and Ctrl-C finds it listening."""
    if name in __all__:
        for module in _MODULES:
            home = import_module(f"{__name__}.{module}")
            if hasattr(home, name):
                return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
