"""The families that transformers has beside Qwen3-VL: how to make a tiny checkpoint, and what their oracle does alone.

Next: tests/parity/test_grpc_families.py
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.parity.cases import Clip, Turn
from tests.parity.glm4v_oracle import split_placeholder_mask
from tests.parity.oracle import Oracle

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """One family of the comparison.

    Attributes:
        make: writes a tiny checkpoint into a directory; it hardly ever ends a sequence by itself.
        oracle: transformers on it.
        patches: how pixels become its patches; see `tests.parity.oracle.patchify`.
        sibling: the family whose processor it shares, which compares the whole list of cases.
    """

    make: Callable[[Path], Path]
    oracle: type[Oracle] = Oracle
    patches: Mapping[str, Any] = field(default_factory=dict)
    sibling: str | None = None


class GlmOracle(Oracle):
    """GLM's frames are made of its image token, and its clips are sampled by the clock.

    transformers refuses a picture beside a clip, since it takes the tokens of one for those of the other; here its
    placeholder mask is split where a clip begins and ends.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        split_placeholder_mask(self.model)

    def spell(self, prompt: str) -> str:
        """Return a raw prompt with GLM's markers."""
        for qwen, glm in (
            ("<|vision_start|><|image_pad|><|vision_end|>", "<|begin_of_image|><|image|><|end_of_image|>"),
            ("<|vision_start|><|video_pad|><|vision_end|>", "<|begin_of_video|><|video|><|end_of_video|>"),
            ("<|image_pad|>", "<|image|>"),
            # Only its start and its end tell a clip from pictures: a bare marker would be a picture.
            ("<|video_pad|>", "<|begin_of_video|><|video|><|end_of_video|>"),
        ):
            prompt = prompt.replace(qwen, glm)
        return prompt

    def content(self, turn: Turn) -> Any:
        """Return a plain string where the template takes nothing else."""
        if turn.role in ("system", "assistant"):
            return "".join(str(part) for part in turn.parts)
        return super().content(turn)

    def sample(self, clip: Clip, total: int, fps: float, options: dict[str, Any]) -> list[int]:
        """Return the frames of GLM's rule, or evenly spread ones where a number of them is asked for."""
        from transformers.video_utils import VideoMetadata

        if "num_frames" in options:
            return np.linspace(0, total - 1, min(options["num_frames"], total)).round().astype(int).tolist()
        metadata = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps if clip.file else None)
        asked = {"fps": options["fps"]} if "fps" in options else {}
        return self.sampler(asked).sample_frames(metadata, **asked).tolist()

    def sampler(self, asked: dict[str, Any]) -> Any:
        """Return the video processor whose rule holds."""
        return self.processor.video_processor


class Glm46VOracle(GlmOracle):
    """GLM-4.6V's own rule knows no rate and overlooks one that is asked for; here GLM-4V's holds then."""

    def sampler(self, asked: dict[str, Any]) -> Any:
        """Return the video processor whose rule holds."""
        from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor

        return Glm4vVideoProcessor() if asked else super().sampler(asked)


def _endless() -> tuple[int, ...]:
    from tests.tiny_models import VOCAB_SIZE

    return (VOCAB_SIZE - 1,)


def _qwen3_vl_moe(path: Path) -> Path:
    from tests.tiny_qwen3_vl_moe import make_tiny_qwen3vl_moe

    return make_tiny_qwen3vl_moe(path, eos_token_ids=_endless())


def _qwen3_5(path: Path) -> Path:
    from tests.tiny_qwen3_5 import make_tiny_qwen3_5

    return make_tiny_qwen3_5(path, eos_token_ids=_endless())


def _qwen3_5_moe(path: Path) -> Path:
    from tests.tiny_qwen3_5 import make_tiny_qwen3_5_moe

    return make_tiny_qwen3_5_moe(path, eos_token_ids=_endless())


def _glm4v(path: Path) -> Path:
    from tests.tiny_glm4v import make_tiny_glm4v

    return make_tiny_glm4v(path, eos_token_ids=_endless(), image_pixels=_GLM_IMAGES)


def _glm4v_moe(path: Path) -> Path:
    from tests.tiny_glm4v import make_tiny_glm4v_moe

    return make_tiny_glm4v_moe(path, eos_token_ids=_endless(), image_pixels=_GLM_IMAGES)


def _glm46v(path: Path) -> Path:
    from tests.tiny_glm4v import make_tiny_glm4v

    return make_tiny_glm4v(path, family="glm46v", eos_token_ids=_endless(), image_pixels=_GLM_IMAGES)


def _interns1_pro(path: Path) -> Path:
    from tests.tiny_interns1_pro import make_tiny_interns1_pro

    return make_tiny_interns1_pro(path, eos_token_ids=_endless())


_GLM_IMAGES = (64 * 64, 2 * 160 * 160)  # as low as the cases' own budgets
_GLM_PATCHES = {"patch": 14, "mean": CLIP_MEAN, "std": CLIP_STD}

FAMILIES = {
    "qwen3_vl_moe": Family(_qwen3_vl_moe, sibling="qwen3_vl"),
    "qwen3_5": Family(_qwen3_5),
    "qwen3_5_moe": Family(_qwen3_5_moe, sibling="qwen3_5"),
    "glm4v": Family(_glm4v, GlmOracle, _GLM_PATCHES),
    "glm4v_moe": Family(_glm4v_moe, GlmOracle, _GLM_PATCHES, sibling="glm4v"),
    "glm46v": Family(_glm46v, Glm46VOracle, _GLM_PATCHES, sibling="glm4v"),
}

MAKERS: dict[str, Callable[[Path], Path]] = {name: family.make for name, family in FAMILIES.items()} | {
    "interns1_pro": _interns1_pro,  # transformers does not have it
}
"""Writers of tiny checkpoints by name of the family."""
