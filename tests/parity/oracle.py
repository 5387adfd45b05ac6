"""What transformers makes of a case: ids, grids, ranges, and its greedy continuation with the margin of each step.

transformers 5.23.0, fp32, its default processors on the torchvision stand-in. Pictures and clips go through its own
image and video processor one by one, so that each can have its own options; all else is its own code, too.

Next: tests/parity/test_grpc_chat.py
"""

import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from tessera.items import PlaceholderRange
from tests.parity.cases import NEW_TOKENS, Case, Clip, Medium, Picture, Turn
from tests.torchvision_stub import load_hf_processor

MARGIN = 2e-4  # below it, two right implementations may choose differently
VIDEO_PAD = "<|video_pad|>"
OUTER = "<|vision_start|><|video_pad|><|vision_end|>"


@dataclass(frozen=True)
class ExpectedItem:
    """One medium as transformers' processor returns it.

    Attributes:
        modality: "image" or "video".
        grid_thw: patches.
        ranges: where its embeddings go; one for each temporal patch of a clip.
        patches: (t*h*w, channels * temporal patch * patch ** 2) fp32, normalised.
        timestamps: seconds of each sampled frame.
    """

    modality: str
    grid_thw: tuple[int, int, int]
    ranges: tuple[PlaceholderRange, ...]
    patches: np.ndarray
    timestamps: tuple[float, ...]


@dataclass(frozen=True)
class Expected:
    """The right answer to a case.

    Attributes:
        prompt: rendered, before expansion.
        short_ids: the prompt's ids before expansion.
        token_ids: after expansion.
        items: in prompt order.
        generated: greedy continuation.
        margins: of each step: logit of the first choice minus that of the second.
        logits: (steps, vocab) raw.
    """

    prompt: str
    short_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    items: tuple[ExpectedItem, ...]
    generated: tuple[int, ...]
    margins: tuple[float, ...]
    logits: np.ndarray

    @property
    def logprobs(self) -> np.ndarray:
        """(steps, vocab) natural logarithms of the probabilities."""
        return torch.log_softmax(torch.from_numpy(self.logits), -1).numpy()


class Oracle:
    """transformers on one checkpoint; answers are kept for the session.

    Of Qwen-like checkpoints as it is; another family overrides what it does differently.
    """

    def __init__(self, checkpoint: Path) -> None:
        import transformers

        self.processor = load_hf_processor(checkpoint)
        [architecture] = json.loads((checkpoint / "config.json").read_text())["architectures"]
        self.model = getattr(transformers, architecture).from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.tokenizer = self.processor.tokenizer
        self._answers: dict[tuple[str, int], Expected] = {}

    def answer(self, case: Case, max_tokens: int = NEW_TOKENS) -> Expected:
        """The expected answer; computed once."""
        key = (case.name, max_tokens)
        if key not in self._answers:
            with torch.no_grad():
                self._answers[key] = self._compute(case, max_tokens)
        return self._answers[key]

    def _compute(self, case: Case, max_tokens: int) -> Expected:
        prompt = self.spell(case.prompt) if case.prompt else self._render(case)
        laid_out = prompt.replace(OUTER, VIDEO_PAD) if case.layout == "v4" else prompt
        media = [self._process(medium, case) for medium in case.shown()]
        text = self._expand(laid_out, media)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        inputs = self._inputs(ids, media)
        types = self._types(ids)
        if types[-1] or _adjacent(media, types):
            logits = self._continue_by_hand(inputs, media, max_tokens)
        else:
            logits = self._continue(inputs, max_tokens)
        top = logits.topk(2, dim=-1).values
        return Expected(
            prompt=prompt,
            short_ids=tuple(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]),
            token_ids=tuple(ids),
            items=tuple(self._items(ids, media)),
            generated=tuple(logits.argmax(-1).tolist()),
            margins=tuple((top[:, 0] - top[:, 1]).tolist()),
            logits=logits.numpy(),
        )

    # ---- the prompt

    def spell(self, prompt: str) -> str:
        """Return a raw prompt of the cases, which are written with Qwen's markers, as the family spells it."""
        return prompt

    def content(self, turn: Turn) -> Any:
        """Return what the template takes for the parts of a turn."""
        return [_content(part) for part in turn.parts]

    def _render(self, case: Case) -> str:
        messages = [{"role": turn.role, "content": self.content(turn)} for turn in case.turns]
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _expand(self, prompt: str, media: Sequence["_Processed"]) -> str:
        images = [medium.replacement for medium in media if medium.modality == "image"]
        videos = [medium.replacement for medium in media if medium.modality == "video"]
        texts, _ = self.processor.get_text_with_replacements([prompt], images, videos)
        return texts[0]

    # ---- the media

    def _process(self, medium: Medium, case: Case) -> "_Processed":
        if isinstance(medium, Picture):
            return self._picture(medium, dict(case.image) | medium.options)
        return self._clip(medium, dict(case.video) | medium.options)

    def _picture(self, picture: Picture, options: dict[str, Any]) -> "_Processed":
        processor = self.processor.image_processor
        image = Image.open(io.BytesIO(picture.file))
        out = processor([image], size=_size(processor.size, options), return_tensors="pt")
        text = self.processor.replace_image_token(out, 0)
        return _Processed("image", out["pixel_values"], out["image_grid_thw"], text, ())

    def _clip(self, clip: Clip, options: dict[str, Any]) -> "_Processed":
        frames, fps = decode_frames(clip)
        if clip.timestamps:
            fps, indices = 1.0, list(clip.timestamps)
        elif options.get("frame_indices"):
            indices = list(options["frame_indices"])
        else:
            indices = self.sample(clip, len(frames), fps, options)
        taken = list(range(len(frames))) if clip.timestamps else indices
        if len(taken) == 1:
            taken, indices = taken * 2, indices * 2
        times = tuple(index / fps for index in indices)
        processor = self.processor.video_processor
        out = processor(
            [np.stack([frames[i] for i in taken])],
            size=_size(processor.size, options),
            do_sample_frames=False,
            video_metadata=[{"total_num_frames": len(frames), "fps": fps, "frames_indices": list(indices)}],
            return_metadata=True,
            return_tensors="pt",
        )
        text = self.processor.replace_video_token(out, 0)
        return _Processed("video", out["pixel_values_videos"], out["video_grid_thw"], text, times)

    def sample(self, clip: Clip, total: int, fps: float, options: dict[str, Any]) -> list[int]:
        """Return the frames of a clip that the family's rule takes."""
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(total_num_frames=total, fps=fps)
        asked = {name: options[name] for name in ("num_frames", "fps") if name in options}
        return self.processor.video_processor.sample_frames(metadata, **asked).tolist()

    # ---- the model

    def _inputs(self, ids: Sequence[int], media: Sequence["_Processed"]) -> dict[str, torch.Tensor]:
        inputs = {
            "input_ids": torch.tensor([list(ids)]),
            "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
            "mm_token_type_ids": torch.tensor([self._types(ids)]),
        }
        for modality, names in (
            ("image", ("pixel_values", "image_grid_thw")),
            ("video", ("pixel_values_videos", "video_grid_thw")),
        ):
            chosen = [medium for medium in media if medium.modality == modality]
            if chosen:
                inputs[names[0]] = torch.cat([medium.patches for medium in chosen])
                inputs[names[1]] = torch.cat([medium.grid for medium in chosen])
        return inputs

    def _continue(self, inputs: dict[str, torch.Tensor], max_tokens: int) -> torch.Tensor:
        out = self.model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        return torch.stack(out.logits, 1)[0].float()

    def _continue_by_hand(
        self, inputs: dict[str, torch.Tensor], media: Sequence["_Processed"], max_tokens: int
    ) -> torch.Tensor:
        """Greedy steps with positions of our own.

        generate() takes two items side by side for one, and goes on after a final placeholder from each row's own
        last position, where the contract says from the largest.
        """
        positions = self._positions(inputs["input_ids"][0].tolist(), media)
        step, rows, past = dict(inputs), [], None
        while len(rows) < max_tokens:
            out = self.model(**step, position_ids=positions[:, None], past_key_values=past, use_cache=True)
            rows.append(out.logits[0, -1].float())
            past, token = out.past_key_values, rows[-1].argmax()
            if token.item() in self._eos():
                break
            positions = positions.max().expand(3, 1) + 1
            step = {"input_ids": token.view(1, 1)}
        return torch.stack(rows)

    def _eos(self) -> list[int]:
        eos = self.model.generation_config.eos_token_id
        return eos if isinstance(eos, list) else [eos]

    def _positions(self, ids: Sequence[int], media: Sequence["_Processed"]) -> torch.Tensor:
        """(3, tokens): text advances all rows; an image or temporal patch keeps its first row constant."""
        columns: list[tuple[int, int, int]] = []
        start = 0
        starts = {span.offset: item.grid_thw for item in self._items(ids, media) for span in item.ranges}
        while len(columns) < len(ids):
            if len(columns) in starts:
                _, height, width = starts[len(columns)]
                rows, cols = height // 2, width // 2
                columns += [(start, start + row, start + col) for row in range(rows) for col in range(cols)]
                start += max(rows, cols)
            else:
                columns.append((start,) * 3)
                start += 1
        return torch.tensor(columns).T

    def _types(self, ids: Sequence[int]) -> list[int]:
        """Return 1 for each token that stands for a picture, 2 for one of a clip, else 0."""
        [types] = self.processor.create_mm_token_type_ids([list(ids)])
        return types

    def _items(self, ids: Sequence[int], media: Sequence["_Processed"]) -> list[ExpectedItem]:
        """The media with their ranges: each takes the next tokens of its kind, in runs of its own length."""
        types = self._types(ids)
        places = {
            name: iter([i for i, kind in enumerate(types) if kind == number])
            for name, number in (("image", 1), ("video", 2))
        }
        items = []
        for medium in media:
            t, h, w = (int(side) for side in medium.grid[0])
            ranges = []
            for _ in range(t):
                run = [next(places[medium.modality]) for _ in range(h * w // 4)]
                assert run == list(range(run[0], run[0] + len(run))), "a run of placeholders has a hole"
                ranges.append(PlaceholderRange(run[0], len(run)))
            items.append(ExpectedItem(medium.modality, (t, h, w), tuple(ranges), medium.patches.numpy(), medium.times))
        return items


@dataclass(frozen=True)
class _Processed:
    modality: str
    patches: torch.Tensor
    grid: torch.Tensor
    replacement: str
    times: tuple[float, ...]


def decode_frames(clip: Clip) -> tuple[list[np.ndarray], float]:
    """All frames of a clip as (height, width, 3) RGB, and its frames a second."""
    if not clip.file:
        frames = [np.asarray(Image.open(io.BytesIO(frame)).convert("RGB")) for frame in clip.frames]
        return frames, clip.source_fps or 24.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        path.write_bytes(clip.file)
        capture = cv2.VideoCapture(str(path))
        fps = capture.get(cv2.CAP_PROP_FPS)
        frames = []
        while (read := capture.read())[0]:
            frames.append(np.ascontiguousarray(read[1][..., ::-1]))
        assert len(frames) == int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
    return frames, fps


def first_difference(expected: Expected, token_ids: Sequence[int]) -> str | None:
    """What is wrong with a continuation, or None where it is right by the contract's rule.

    Tokens are equal until a step whose margin is below MARGIN.
    """
    wanted = expected.generated
    for step, (want, got) in enumerate(zip(wanted, token_ids, strict=False)):
        if expected.margins[step] < MARGIN:
            return None
        if want != got:
            return f"step {step}: {got} instead of {want} (margin {expected.margins[step]:.4f}); {list(token_ids)}"
    if len(token_ids) < len(wanted):
        return f"{len(token_ids)} tokens instead of {len(wanted)}"
    return None


def patchify(
    pixels: np.ndarray,
    patch: int = 16,
    merge: int = 2,
    temporal: int = 2,
    mean: Sequence[float] = (0.5,) * 3,
    std: Sequence[float] = (0.5,) * 3,
) -> np.ndarray:
    """(frames, height, width, 3) uint8 to the (t*h*w, ...) fp32 patches that transformers' processors return."""
    frames = (pixels.astype(np.float32) - np.float32(255) * np.float32(mean)) / (np.float32(255) * np.float32(std))
    count, height, width, _ = frames.shape
    t = math.ceil(count / temporal)
    frames = np.concatenate([frames, *[frames[-1:]] * (t * temporal - count)])
    h, w = height // patch, width // patch
    blocks = frames.reshape(t, temporal, h // merge, merge, patch, w // merge, merge, patch, 3)
    return blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1)


def _content(part: str | Medium) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, Picture) else "video"}


def _size(default: Any, options: dict[str, Any]) -> dict[str, int]:
    return {
        "shortest_edge": options.get("min_pixels", default["shortest_edge"]),
        "longest_edge": options.get("max_pixels", default["longest_edge"]),
    }


def _adjacent(media: Sequence[_Processed], types: Sequence[int]) -> bool:
    """Whether two images stand side by side without a token between them."""
    images = [medium for medium in media if medium.modality == "image"]
    runs = sum(kind == 1 and before != 1 for before, kind in zip([0, *types], types, strict=False))
    return runs < len(images)
