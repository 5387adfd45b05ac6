"""Settings of the gateway: one frozen dataclass, read once in __main__.py.

Next: server.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.media.loaders import NAMES


@dataclass(frozen=True)
class GatewaySettings:
    """Tessera's gateway: takes requests with media and places them on workers."""

    model: str = field(metadata={"help": "checkpoint directory or hub name; the workers' own --model"})
    worker: tuple[str, ...] = field(
        default=("localhost:50061",), metadata={"help": "worker address host:port; repeat for more"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=50051, metadata={"help": "port to listen on; 0 = any"})
    model_name: str = field(default="", metadata={"help": "name that clients ask for; default: the model's own"})
    log_level: str = field(
        default="info",
        metadata={"help": "least level that is logged", "choices": ("debug", "info", "warning", "error")},
    )
    reflection: bool = field(default=True, metadata={"help": "serve gRPC reflection"})

    max_inline_bytes: int = field(
        default=32 << 20, metadata={"help": "most bytes of one request message", "unit": "bytes"}
    )
    max_requests: int = field(default=256, metadata={"help": "requests at once; more are refused"})
    max_inflight_bytes: int = field(
        default=2 << 30, metadata={"help": "bytes of media that running requests hold", "unit": "bytes"}
    )
    max_items: int = field(default=64, metadata={"help": "most media of one request"})

    pool_processes: int = field(default=2, metadata={"help": "processes that decode and resize media"})
    pool_memory_bytes: int = field(default=2 << 30, metadata={"help": "memory limit of each of them", "unit": "bytes"})
    pool_cpu_s: float = field(default=60.0, metadata={"help": "CPU seconds that one medium may take"})
    video_loader: str = field(
        default="auto",
        metadata={
            "help": "what decodes clips; auto = the first of these that is installed",
            "choices": NAMES,
        },
    )
    pool_queue: int = field(default=1024, metadata={"help": "media that may wait for a process"})
    scratch_dir: str = field(default="", metadata={"help": "folder for loaders' files; default: a temporary one"})
    processor_cache_bytes: int = field(
        default=256 << 20, metadata={"help": "processed media that are kept; 0 = off", "unit": "bytes"}
    )

    max_media_bytes: int = field(
        default=512 << 20, metadata={"help": "most bytes of one uploaded or fetched file", "unit": "bytes"}
    )
    max_decoded_pixels: int = field(default=1 << 26, metadata={"help": "most pixels of a picture or frame as decoded"})
    max_image_pixels: int = field(
        default=0, metadata={"help": "most pixels of a picture after resize; 0 = the checkpoint's"}
    )
    max_video_pixels: int = field(
        default=0, metadata={"help": "most pixels of a clip after resize; 0 = the checkpoint's"}
    )
    max_frames: int = field(default=768, metadata={"help": "most frames of a clip that are used"})
    max_source_frames: int = field(default=65_536, metadata={"help": "most frames that a clip may have"})
    max_duration_s: float = field(default=7200.0, metadata={"help": "most seconds of a clip"})
    max_series_samples: int = field(
        default=1 << 24, metadata={"help": "most samples of a time series, all its channels together"}
    )

    allow_url_host: tuple[str, ...] = field(
        default=(), metadata={"help": "host that http(s) URLs may name; repeat for more; none = URLs are refused"}
    )
    allow_url_network: tuple[str, ...] = field(
        default=(),
        metadata={"help": "network (CIDR) beside the public ones that URLs may lead to; repeat for more"},
    )
    fetch_timeout_s: float = field(default=30.0, metadata={"help": "seconds that one download may take"})
    media_root: str = field(default="", metadata={"help": "folder under which paths may be opened; none = refused"})

    upload_bytes: int = field(default=1 << 30, metadata={"help": "uploads that are held", "unit": "bytes"})
    upload_caller_bytes: int = field(
        default=512 << 20, metadata={"help": "uploads that are held for one caller", "unit": "bytes"}
    )
    upload_ttl_s: float = field(default=600.0, metadata={"help": "seconds after last use that uploads are held"})
    item_bytes: int = field(default=512 << 20, metadata={"help": "prepared items that are held", "unit": "bytes"})
    item_ttl_s: float = field(default=600.0, metadata={"help": "seconds after last use that items are held"})

    connect_interval_s: float = field(default=0.25, metadata={"help": "seconds between tries to reach a worker"})
    drain_s: float = field(default=10.0, metadata={"help": "seconds that running requests get at shutdown"})
