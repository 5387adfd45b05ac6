"""The Python client of Tessera: `Client`, `AsyncClient`, and the command `tessera`.

Next: sync_client.py, then requests.py and results.py; the command starts in cli/program.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera_client.async_client import AsyncClient, AsyncStream
    from tessera_client.embeddings import load_embeddings, save_embeddings
    from tessera_client.encoding import encode_image_base64, encode_image_url, encode_video_base64, encode_video_url
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
    from tessera_client.from_processor import items_from_processor
    from tessera_client.items import Item
    from tessera_client.loading import load_image, load_video
    from tessera_client.parts import (
        Clip,
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
    from tessera_client.tensors import Tensor
    from tessera_client.time_series import Series, encode_time_series_base64, load_time_series
    from tessera_client.uploads import UploadProgress

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "ChatResult",
    "Choice",
    "Client",
    "Clip",
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
    "Series",
    "ServerPath",
    "ServerUnreachable",
    "Stream",
    "Tensor",
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
    "encode_image_base64",
    "encode_image_url",
    "encode_time_series_base64",
    "encode_video_base64",
    "encode_video_url",
    "items_from_processor",
    "load_embeddings",
    "load_image",
    "load_time_series",
    "load_video",
    "save_embeddings",
    "system",
    "tool",
    "user",
]

# In the order in which they import each other.
_MODULES = (
    "errors",
    "parts",
    "tensors",
    "items",
    "uploads",
    "results",
    "time_series",
    "sync_client",
    "async_client",
    "loading",
    "encoding",
    "embeddings",
    "from_processor",
)


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
