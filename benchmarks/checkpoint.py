"""The model of the benchmarks: a random Qwen3-VL of 424 M parameters in the true layout, with all its files.

Next: vocabulary.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a Qwen3-VL; the defaults are those of facts that others have measured too.

    Attributes:
        hidden: width of the language model; `layers`, `ffn`, `heads`, `kv_heads`, `head_dim`, `vocab` are its own too.
        vision_hidden: width of the vision tower; likewise the other vision_*.
        deepstack: vision layers whose features enter the language model.
    """

    hidden: int = 1024
    layers: int = 16
    ffn: int = 3072
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 32768
    vision_hidden: int = 768
    vision_layers: int = 12
    vision_ffn: int = 3072
    vision_heads: int = 12
    patch: int = 16
    deepstack: tuple[int, ...] = (2, 5, 8)

    @property
    def text_config(self) -> dict[str, Any]:
        """Fields of config.json's text_config."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": 8192,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000.0,
                "mrope_section": [self.head_dim * share // 128 for share in (24, 20, 20)],
                "mrope_interleaved": True,
            },
        }

    @property
    def vision_config(self) -> dict[str, Any]:
        """Fields of config.json's vision_config."""
        return {
            "hidden_size": self.vision_hidden,
            "depth": self.vision_layers,
            "intermediate_size": self.vision_ffn,
            "num_heads": self.vision_heads,
            "patch_size": self.patch,
            "num_position_embeddings": 2304,
            "out_hidden_size": self.hidden,
            "deepstack_visual_indexes": list(self.deepstack),
        }


# The published budgets: a picture of 512 x 512 and 64 frames of 480 x 640 stay as large as they are.
IMAGE_PIXELS = (65_536, 16_777_216)
VIDEO_PIXELS = (4_096, 25_165_824)


def make_checkpoint(path: Path, size: ModelSize, seed: int = 0) -> None:
    """Write the checkpoint; takes memory for two copies of the weights, so run it in a process of its own.

    Args:
        path: directory to make.
        size: of the model.
        seed: of the weights.
    """
    from benchmarks.vocabulary import build_vocabulary
    from tests.tiny_models import make_tiny_qwen3vl

    make_tiny_qwen3vl(
        path,
        seed=seed,
        text=size.text_config,
        vision=size.vision_config,
        image_pixels=IMAGE_PIXELS,
        video_pixels=VIDEO_PIXELS,
    )
    # The special tokens come first in both tokenizers, so the ids in config.json hold.
    build_vocabulary(size.vocab).save(str(path / "tokenizer.json"))
