"""Settings of the worker: one frozen dataclass, read once in __main__.py.

Next: worker/server.py
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class WorkerSettings:
    """Tessera's worker: runs one model on one device for the gateways that connect to it."""

    model: str = field(metadata={"help": "checkpoint directory or hub name"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on"})
    port: int = field(default=50061, metadata={"help": "port to listen on; 0 = any"})
    log_level: str = field(
        default="info",
        metadata={"help": "least level that is logged", "choices": ("debug", "info", "warning", "error")},
    )
    device: str = field(
        default="auto", metadata={"help": "auto = a GPU where there is one", "choices": ("auto", "cpu", "cuda")}
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "of weights and KV cache; auto = float32 on the CPU, the checkpoint's on a GPU",
            "choices": ("auto", "float32", "bfloat16"),
        },
    )
    threads: int = field(default=0, metadata={"help": "threads of the arithmetic on the CPU; 0 = all cores"})
    batch_invariant: bool = field(
        default=False,
        metadata={
            "help": "an answer's bits depend on its own request alone: not on what runs beside it, on chunks, caches, "
            "preemptions or --threads; on CUDA, or in float32 on the CPU with the C++ library built, else the worker "
            "refuses to start"
        },
    )
    check_launches: bool = field(
        default=False,
        metadata={
            "help": "wait after every launch of a CUDA op, so that an error names its op; slow, and steps are not "
            "recorded as CUDA graphs"
        },
    )
    disable_vision_encoder: bool = field(
        default=False, metadata={"help": "leave the vision weights unread and refuse images and clips"}
    )

    max_model_len: int | None = field(
        default=None, metadata={"help": "most tokens of prompt and answer; default: the model's, if the KV cache fits"}
    )
    max_sequences: int | None = field(
        default=None,
        metadata={"help": "most sequences that run at once; default: 64, if recurrent states leave memory for KV"},
    )
    max_batched_tokens: int = field(default=2048, metadata={"help": "most tokens of one step"})
    block_size: int = field(default=16, metadata={"help": "tokens of a KV block"})
    num_blocks: int | None = field(default=None, metadata={"help": "KV blocks; goes before --kv-cache-bytes"})
    kv_cache_bytes: int | None = field(
        default=None,
        metadata={"help": "bytes of KV blocks and recurrent states; goes before --kv-cache-share", "unit": "bytes"},
    )
    kv_cache_share: float | None = field(
        default=None,
        metadata={"help": "most of the free memory that both take, as a share; default 0.9 on a GPU, 0.25 on a CPU"},
    )
    state_checkpoints: int | None = field(
        default=None,
        metadata={
            "help": "recurrent states that a hybrid model keeps for its prefix cache; "
            "default: two for each sequence, if memory allows; 0 = no prefix cache"
        },
    )
    state_passing_share: float = field(
        default=0.5, metadata={"help": "share of these that answers may take while they grow; the rest is for prompts"}
    )
    encoder_cache_bytes: int | None = field(
        default=None,
        metadata={"help": "bytes of encoded items; 0 = no more than running requests need", "unit": "bytes"},
    )
    prefix_cache: bool = field(default=True, metadata={"help": "reuse the KV blocks of equal prefixes"})
    retain_encoded: bool = field(default=True, metadata={"help": "keep encoded items after their requests"})
    staged_bytes: int = field(
        default=1 << 30, metadata={"help": "bytes of items that wait to be encoded", "unit": "bytes"}
    )
    staged_ttl_s: float = field(default=300.0, metadata={"help": "seconds that an unwanted one of them is kept"})
    async_scheduling: str = field(
        default="auto",
        metadata={
            "help": "launch each step before the tokens of the one before have come from the device; auto = on a GPU",
            "choices": ("auto", "on", "off"),
        },
    )

    heartbeat_s: float = field(default=1.0, metadata={"help": "seconds between load reports of an idle engine"})
    drain_s: float = field(default=10.0, metadata={"help": "seconds that running requests get at shutdown"})
