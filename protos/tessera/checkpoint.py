"""Checkpoint directories: finding one by name, and a fingerprint that tells two apart.

Gateway and worker read the same files, each for itself; the fingerprint is how they find out that they do not.

Next: protos/tessera/errors.py
"""

import hashlib
from pathlib import Path

from tessera.errors import NotFound

FINGERPRINTED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""What decides prompts, grids and positions; weights are not hashed, they take too long to read."""

DOWNLOADED_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.safetensors")
_VERSION = b"tessera-checkpoint-1"


def fingerprint(model_dir: str | Path) -> str:
    """Return a hex SHA-256 over a checkpoint's config, tokenizer, template and processor files.

    Args:
        model_dir: checkpoint directory; files that it lacks count as absent, which differs from empty.
    """
    digest = hashlib.sha256(_VERSION)
    for name in FINGERPRINTED_FILES:
        file = Path(model_dir) / name
        if file.is_file():
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def resolve_model_dir(name: str | Path, *, weights: bool = True) -> Path:
    """Return the directory of a checkpoint: a local one as it is, else a snapshot from the Hugging Face hub.

    Args:
        name: a directory, or a hub name as "Qwen/Qwen3-VL-2B-Instruct".
        weights: False leaves the safetensors out of a download (a gateway needs none).

    Returns:
        A directory that holds config.json.

    Raises:
        NotFound: no such directory, and the hub does not give it.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise NotFound(f"{path} holds no config.json.", reason="MODEL_NOT_FOUND")
        return path
    # Imported only here: most starts name a local directory, and the import takes most of a second.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [p for p in DOWNLOADED_PATTERNS if weights or p != "*.safetensors"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        message = f"Model {str(name)!r} is neither a local directory nor to be had from the hub."
        raise NotFound(message, reason="MODEL_NOT_FOUND") from error
