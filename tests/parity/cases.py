"""The requests whose answers are compared with transformers: what is said and shown, and how to ask it over gRPC.

A case is neutral: oracle.py reads it for transformers, the functions here turn it into messages of tessera.v1.

Next: tests/parity/oracle.py
"""

import io
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types

NEW_TOKENS = 24
ROLES = {"system": pb.ROLE_SYSTEM, "user": pb.ROLE_USER, "assistant": pb.ROLE_ASSISTANT, "tool": pb.ROLE_TOOL}
LAYOUTS = {"v5": types.VIDEO_LAYOUT_V5, "v4": types.VIDEO_LAYOUT_V4}


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its own pixel budget."""

    file: bytes
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The fields of ImageOptions that are set."""
        return _set(min_pixels=self.min_pixels, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class Clip:
    """A clip: a file, or frames as PNG files; and its own options.

    Attributes:
        file: an encoded video; empty with frames.
        frames: encoded pictures.
        source_fps: of the frames, which are then sampled like a file.
        timestamps: of the frames, which are then all used.
    """

    file: bytes = b""
    frames: tuple[bytes, ...] = ()
    source_fps: float | None = None
    timestamps: tuple[float, ...] = ()
    num_frames: int | None = None
    fps: float | None = None
    frame_indices: tuple[int, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The fields of VideoOptions that are set."""
        options = _set(num_frames=self.num_frames, fps=self.fps, min_pixels=self.min_pixels, max_pixels=self.max_pixels)
        return options | ({"frame_indices": self.frame_indices} if self.frame_indices else {})


Medium = Picture | Clip
Part = str | Picture | Clip


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Case:
    """One request: a conversation, or (with `prompt`) a raw prompt with its media.

    Attributes:
        name: of the test.
        turns: the conversation.
        prompt: a raw prompt; its n-th marker stands for the n-th of `media`.
        media: of a raw prompt.
        image, video: options of all pictures or clips of the conversation; a part's own win.
        layout: markers of clips, "v5" or "v4".
    """

    name: str
    turns: tuple[Turn, ...] = ()
    prompt: str = ""
    media: tuple[Medium, ...] = ()
    image: tuple[tuple[str, Any], ...] = ()
    video: tuple[tuple[str, Any], ...] = ()
    layout: str = "v5"

    def shown(self) -> tuple[Medium, ...]:
        """All media, in prompt order."""
        return self.media or tuple(part for turn in self.turns for part in turn.parts if not isinstance(part, str))


def user(*parts: Part) -> Turn:
    """What the user says."""
    return Turn("user", parts)


def chat_request(case: Case, max_tokens: int = NEW_TOKENS, **sampling: Any) -> pb.ChatRequest:
    """The case as a conversation, greedy, with the likeliest tokens of each step."""
    messages = [pb.Message(role=ROLES[turn.role], parts=[_part(part) for part in turn.parts]) for turn in case.turns]
    return pb.ChatRequest(
        messages=messages,
        sampling=greedy(max_tokens, **sampling),
        media_options=types.MediaOptions(
            image=types.ImageOptions(**dict(case.image)) if case.image else None,
            video=types.VideoOptions(**dict(case.video)) if case.video else None,
            video_layout=LAYOUTS[case.layout],
        ),
    )


def greedy(max_tokens: int = NEW_TOKENS, **sampling: Any) -> types.SamplingParams:
    """Greedy sampling with logprobs of the 20 likeliest tokens."""
    fields = {"temperature": 0.0, "logprobs": True, "top_logprobs": 20} | sampling
    return types.SamplingParams(max_tokens=max_tokens, **fields)


def _part(part: Part) -> pb.Part:
    if isinstance(part, str):
        return pb.Part(text=part)
    if isinstance(part, Picture):
        options = types.ImageOptions(**part.options) if part.options else None
        return pb.Part(image=pb.ImagePart(media=pb.MediaSource(data=part.file), options=options))
    clip_options = types.VideoOptions(**part.options) if part.options else None
    return pb.Part(video=pb.VideoPart(media=clip_source(part), options=clip_options))


def clip_source(clip: Clip) -> pb.MediaSource:
    """Where a clip comes from, as a message."""
    if clip.file:
        return pb.MediaSource(data=clip.file)
    frames = pb.FrameList(frames=[pb.MediaSource(data=frame) for frame in clip.frames], timestamps=clip.timestamps)
    if clip.source_fps is not None:
        frames.source_fps = clip.source_fps
    return pb.MediaSource(frames=frames)


def _set(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# ---- media, the same in every run


def pixels(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """(height, width, channels) uint8: soft blobs under a little noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    noise = rng.integers(-12, 13, (height, width, channels))
    return (smooth.astype(np.int16) + noise).clip(0, 255).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def frames_of(seed: int, count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames that drift from one picture to another."""
    first, last = pixels(seed, height, width).astype(float), pixels(seed + 1000, height, width).astype(float)
    return [(first + (last - first) * i / max(count - 1, 1)).astype(np.uint8) for i in range(count)]


def video_file(frames: list[np.ndarray], fps: float, suffix: str = ".avi", codec: str = "MJPG") -> bytes:
    """Frames as an encoded video file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        height, width = frames[0].shape[:2]
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (width, height))
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
        writer.release()
        return path.read_bytes()


@cache
def picture(seed: int, height: int, width: int) -> Picture:
    """A picture of this size."""
    return Picture(png(pixels(seed, height, width)))


@cache
def clip(seed: int, count: int, height: int, width: int, fps: float = 8.0, codec: str = "MJPG") -> Clip:
    """A clip file of this size."""
    suffix = ".mp4" if codec == "mp4v" else ".avi"
    return Clip(video_file(frames_of(seed, count, height, width), fps, suffix, codec))


@cache
def frame_list(seed: int, count: int, height: int, width: int) -> Clip:
    """A clip of separate frames; source_fps or timestamps are still to be set."""
    return Clip(frames=tuple(png(frame) for frame in frames_of(seed, count, height, width)))


# ---- the cases

SMALL, TALL, WIDE = picture(1, 100, 130), picture(2, 210, 90), picture(3, 64, 150)
CLIP, CLIP_B = clip(11, 24, 72, 96), clip(12, 30, 120, 80, fps=10.0, codec="mp4v")
FRAMES = frame_list(13, 6, 80, 100)
ALPHA = Picture(png(pixels(5, 90, 90, channels=4)))
GRAY = Picture(png(pixels(6, 80, 120, channels=1)[..., 0]))
IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def chat_cases() -> list[Case]:
    """Conversations."""
    ask = "What do you see?"
    few_pixels = {"min_pixels": 32 * 32, "max_pixels": 8 * 32 * 32}
    tiny, small_clip = picture(24, 40, 40), clip(14, 9, 40, 48)
    return [
        Case("text", (user("Describe the image. Is it red?"),)),
        Case("system_and_text", (Turn("system", ("You are a helpful assistant.",)), user("Hello, who are you?"))),
        Case("one_image", (user(SMALL, ask),)),
        Case("image_after_text", (user("Look at this picture: ", TALL, " and say what it shows."),)),
        Case("three_images", (user(SMALL, TALL, "Compare both.", WIDE),)),
        Case("image_video_image_video", (user(SMALL, CLIP, TALL, CLIP_B, "Compare them."),)),
        Case("two_videos", (user(CLIP_B, CLIP, "Which came first?"),)),
        Case("image_then_video", (user("First ", WIDE, "then ", CLIP, ask),)),
        Case("video_then_image", (user("First ", CLIP, "then ", WIDE, ask),)),
        Case("extreme_aspect_wide", (user(picture(7, 8, 1500), ask),)),
        Case("extreme_aspect_tall", (user(picture(8, 1590, 8), ask),)),
        Case("aspect_of_a_clip", (user(clip(15, 8, 16, 640), ask),)),
        Case("large_image", (user(picture(9, 700, 900), ask),)),
        Case("alpha", (user(ALPHA, ask),)),
        Case("gray", (user(GRAY, ask),)),
        Case("video_default_sampling", (user(CLIP, "What happens in the video?"),)),
        Case("video_fps", (user(replace(CLIP, fps=3.0), ask),)),
        Case("video_fps_below_min_frames", (user(replace(CLIP_B, fps=0.5), ask),)),
        Case("video_num_frames", (user(replace(CLIP_B, num_frames=5), ask),)),
        Case("video_fps_overridden_by_part", (user(replace(CLIP, fps=4.0), CLIP_B, ask),), video=(("fps", 1.5),)),
        Case("video_frame_indices", (user(replace(CLIP, frame_indices=(0, 3, 4, 11, 20)), ask),)),
        Case("frames_with_source_fps", (user(replace(FRAMES, source_fps=2.0), ask),)),
        Case("frames_with_timestamps", (user(replace(FRAMES, timestamps=(0.0, 0.25, 0.5, 0.75, 3.0, 9.25)), ask),)),
        Case("one_frame_in_a_list", (user(replace(frame_list(16, 1, 90, 70), source_fps=2.0), ask),)),
        Case("one_frame_in_a_file", (user(clip(17, 1, 64, 80), ask),)),
        Case("odd_number_of_frames", (user(replace(CLIP, num_frames=7), ask),)),
        Case("layout_of_4_57", (user(SMALL, CLIP, ask),), layout="v4"),
        Case(
            "several_turns",
            (
                user(SMALL, ask),
                Turn("assistant", ("a red circle.",)),
                user("And now? ", CLIP, "It moves."),
                Turn("assistant", ("a green star moves left.",)),
                user("Which came first?"),
            ),
        ),
        Case("tool_with_image", (user("Look it up."), Turn("tool", ("found: ", SMALL)), user(ask))),
        Case("min_pixels_of_small_image", (user(replace(tiny, min_pixels=128 * 128), WIDE, small_clip, ask),)),
        Case("budget_of_small_clip", (user(SMALL, replace(small_clip, **few_pixels), CLIP, ask),)),
        Case(
            "budgets_of_both",
            (user(replace(SMALL, max_pixels=64 * 64), TALL, replace(CLIP, min_pixels=6 * 96 * 96), CLIP_B, ask),),
        ),
        Case(
            "budget_of_all_images",
            (user(SMALL, replace(TALL, max_pixels=96 * 96), CLIP, ask),),
            image=(("max_pixels", 64 * 96), ("min_pixels", 32 * 32)),
        ),
        Case("empty_texts_round_an_image", (user("", SMALL, ""),)),
    ]


def raw_cases() -> list[Case]:
    """Raw prompts for Generate, whose markers the server expands."""
    one_token = replace(picture(10, 32, 32), min_pixels=32 * 32)
    return [
        Case("raw_text", prompt="The picture shows no person; the clip"),
        Case("raw_media_at_start", prompt=f"{IMAGE} What is this?", media=(SMALL,)),
        Case("raw_bare_marker_at_start", prompt="<|image_pad|> What is this?", media=(TALL,)),
        Case("raw_video_at_start", prompt=f"{VIDEO} What is this?", media=(CLIP,)),
        Case("raw_media_at_end", prompt=f"What is this? {IMAGE}", media=(WIDE,)),
        Case("raw_video_at_end", prompt=f"What is this? {VIDEO}", media=(CLIP,)),
        Case("raw_prompt_ends_in_placeholder", prompt="What is this? <|image_pad|>", media=(SMALL,)),
        Case("raw_one_placeholder", prompt="<|image_pad|>", media=(TALL,)),
        Case("raw_one_video_placeholder", prompt="<|video_pad|>", media=(CLIP,)),
        Case("raw_run_of_one", prompt=f"a {IMAGE} b", media=(one_token,)),
        Case("raw_one_placeholder_of_one_token", prompt="<|image_pad|>", media=(one_token,)),
        Case("raw_markers_mixed", prompt=f"a {IMAGE}{VIDEO} b {VIDEO} c {IMAGE}", media=(SMALL, CLIP, CLIP_B, WIDE)),
        Case("raw_video_of_4_57", prompt=f"a\n{VIDEO} b", media=(CLIP,), layout="v4"),
        Case("raw_adjacent_images", prompt="a <|image_pad|><|image_pad|> b", media=(SMALL, WIDE)),
        Case("raw_adjacent_image_and_run_of_one", prompt="<|image_pad|><|image_pad|>", media=(one_token, SMALL)),
    ]
