"""Conversations about generated media: questions in several phrasings, and the one right answer to each.

Next: models/shapes/train.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scenes import Motion, Picture, Rng, Thing, motion, picture

NUMBERS = ("zero", "one", "two", "three")
NO_PICTURE = "I see no picture."
ORDINALS = ("first", "second", "third")

ANY = ("What do you see?", "Describe what you see.", "What is shown here?")
DESCRIBE = (
    "Describe the image.", "What is in this picture?", "What is in the image?", "Describe the picture.",
    "Describe this image.", "What does the image show?", "What is in the picture?", "Describe this picture.",
    "What can you see in the image?",
)  # fmt: skip
COUNT = (
    "How many shapes are there?", "How many shapes do you see?", "Count the shapes.", "How many objects are there?",
    "How many shapes are in the image?", "What is the number of shapes?", "How many shapes are in the picture?",
)  # fmt: skip
COLOR = (
    "What color is the {}?", "What colour is the {}?", "Which color is the {}?", "What is the color of the {}?",
    "Tell me the color of the {}.", "Which color does the {} have?",
)  # fmt: skip
SHAPE = (
    "What shape is {}?", "Which shape is {}?", "What shape is the {} one?", "What is the {} shape?",
    "Which shape is the {} one?", "What kind of shape is {}?",
)  # fmt: skip
LONE_SHAPE = ("What shape is it?", "What shape is this?", "Which shape is in the picture?", "Which shape is it?")
ORDER = (
    "List the shapes from left to right.", "Name the shapes from left to right.",
    "What do you see from left to right?", "Describe the image from left to right.",
)  # fmt: skip
PLACE = ("What is on the {}?", "Which shape is on the {}?", "What do you see on the {}?", "Name the shape on the {}.")
MIDDLE = ("What is in the middle?", "Which shape is in the middle?", "Name the shape in the middle.")
HAPPENS = (
    "What happens in the video?", "Describe the video.", "What is happening in the video?", "Describe this video.",
    "What happens in this video?", "What does the video show?", "Describe the clip.", "What happens in the clip?",
    "What is in the video?",
)  # fmt: skip
WAY = (
    "Which way does it move?", "Which way does the shape move?", "In which direction does it move?",
    "Where does the shape move?", "What direction does it move in?", "Which direction does the {} move?",
    "Which way does the {} move?", "In which direction does the {} go?", "Which way does the {} go?",
)  # fmt: skip
MOVING_COLOR = (
    "What color is the moving shape?", "What color is the shape in the video?", "What color is the {}?",
    "Which color does the moving shape have?", "What color moves?",
)  # fmt: skip
MOVING_SHAPE = ("Which shape moves?", "What shape is moving?", "What shape is in the video?", "What moves?")
TWO = (
    "Describe both images.", "What is in the two pictures?", "What do the two images show?", "Describe the images.",
    "What is in both images?", "Describe both pictures.", "Describe the two images.",
)  # fmt: skip
MORE = ("Describe the images.", "What do the images show?")
ONE_OF = (
    "What is in the {} image?", "Describe the {} image.", "What does the {} picture show?", "Describe the {} picture.",
)  # fmt: skip
MIXED = (
    "Describe the image and the video.", "What do the image and the video show?", "Describe the video and the image.",
    "Describe the picture and the video.", "What is in the image and the video?",
    "Describe both the image and the video.",
)  # fmt: skip
CHAT = ("Hello!", "Hello.", "Hi", "Who are you?", "What is this?", "Can you help me?", "Tell me a story.")
SYSTEM = (
    "You are a helpful assistant.", "You describe pictures.", "Answer in one short sentence.", "Be brief.",
    "You are a helpful assistant that looks at images and videos.",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question, its kind (a row of the table) and its answer."""

    kind: str
    question: str
    answer: str


def part(seen: Picture | Motion) -> dict[str, Any]:
    """The content part of a message."""
    if isinstance(seen, Picture):
        return {"type": "image", "image": seen.image}
    return {"type": "video", "video": seen.clip}


@dataclass(frozen=True)
class Conversation:
    """Media in order, then one or more turns about them."""

    media: tuple[Picture | Motion, ...]
    turns: tuple[Turn, ...]
    system: str | None
    media_last: bool

    def messages(self, answered: int) -> list[dict[str, Any]]:
        """Messages up to the question after `answered` answers, or to the end where all are answered."""
        parts = [part(each) for each in self.media]
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for number, turn in enumerate(self.turns[: answered + 1]):
            text = [{"type": "text", "text": turn.question}]
            content = [] if number else parts
            content = text + content if self.media_last else content + text
            messages.append({"role": "user", "content": content if number == 0 and parts else turn.question})
            if number < answered:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages


def pick(rng: Rng, phrasings: tuple[str, ...], word: str = "") -> str:
    """One phrasing, its blank filled."""
    return phrasings[rng.integers(len(phrasings))].format(word)


def listed(things: tuple[Thing, ...]) -> str:
    """`a red circle, a blue star and a green square`."""
    words = [str(each) for each in things]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def moves(seen: Motion) -> str:
    """`a green star moves left`."""
    return f"{seen.thing} moves {seen.direction}"


def about_picture(rng: Rng, seen: Picture, others: bool = False) -> Turn:
    """A question about one picture; `others`: the request holds a clip too, so the question must say image."""
    things = seen.things
    if others:
        return Turn("image + video", pick(rng, DESCRIBE), f"{listed(things)}.")
    colors, shapes = [each.color for each in things], [each.shape for each in things]
    choice = rng.uniform()
    if choice < 0.36:
        return Turn("describe", pick(rng, DESCRIBE + ANY), f"{listed(things)}.")
    if choice < 0.42:
        return Turn("count", pick(rng, COUNT), f"{NUMBERS[len(things)]}.")
    target = things[rng.integers(len(things))]
    if choice < 0.66 and shapes.count(target.shape) == 1:
        word = "shape" if len(things) == 1 and rng.uniform() < 0.3 else target.shape
        return Turn("colour", pick(rng, COLOR, word), f"{target.color}.")
    if choice < 0.8 and colors.count(target.color) == 1:
        lone = len(things) == 1 and rng.uniform() < 0.4
        return Turn("shape", pick(rng, LONE_SHAPE) if lone else pick(rng, SHAPE, target.color), f"{target.shape}.")
    if len(things) == 1 or rng.uniform() < 0.25:
        return Turn("order", pick(rng, ORDER), f"{listed(things)}.")
    at = int(rng.integers(len(things)))
    question = pick(rng, MIDDLE) if 0 < at < len(things) - 1 else pick(rng, PLACE, "right" if at else "left")
    return Turn("order", question, f"{things[at]}.")


def about_motion(rng: Rng, seen: Motion, others: bool = False) -> Turn:
    """A question about one clip; `others`: the request holds a picture too, so the question must say video."""
    choice = rng.uniform()
    if others:
        return Turn("image + video", pick(rng, HAPPENS), f"{moves(seen)}.")
    if choice < 0.5:
        return Turn("motion", pick(rng, HAPPENS + ANY), f"{moves(seen)}.")
    if choice < 0.88:
        return Turn("direction", pick(rng, WAY, seen.thing.shape), f"{seen.direction}.")
    if choice < 0.93:
        return Turn("clip colour, shape", pick(rng, MOVING_COLOR, seen.thing.shape), f"{seen.thing.color}.")
    return Turn("clip colour, shape", pick(rng, MOVING_SHAPE), f"{seen.thing.shape}.")


def about_images(rng: Rng, seen: tuple[Picture, ...]) -> Turn:
    """A question about two or three pictures at once, or about one by its number."""
    kind = "two images" if len(seen) == 2 else "three images"
    if rng.uniform() < 0.3:
        at = int(rng.integers(len(seen)))
        return Turn(kind, pick(rng, ONE_OF, ORDINALS[at]), f"{listed(seen[at].things)}.")
    answer = ", then ".join(listed(each.things) for each in seen)
    return Turn(kind, pick(rng, TWO + ANY if len(seen) == 2 else MORE), f"first {answer}.")


def about_both(rng: Rng, shown: Picture, seen: Motion) -> Turn:
    """A question about a picture and a clip, or one of them by its name."""
    choice = rng.uniform()
    if choice < 0.15:
        return about_picture(rng, shown, others=True)
    if choice < 0.3:
        return about_motion(rng, seen, others=True)
    answer = f"the image shows {listed(shown.things)}; in the video {moves(seen)}."
    return Turn("image + video", pick(rng, MIXED + ANY), answer)


def several(rng: Rng, ask: Callable[[], Turn], most: int) -> tuple[Turn, ...]:
    """One to `most` questions with different answers: to copy an answer teaches nothing about a picture."""
    turns: dict[str, Turn] = {}
    for _ in range(int(rng.integers(1, most + 1))):
        turn = ask()
        turns.setdefault(turn.answer, turn)
    return tuple(turns.values())


MIXTURE = {"picture": 0.34, "motion": 0.37, "two": 0.09, "three": 0.02, "both": 0.16, "none": 0.02}


def conversation(rng: Rng, most_turns: int = 3, mixture: dict[str, float] | None = None) -> Conversation:
    """One conversation, drawn from the mixture."""
    mixture = mixture or MIXTURE
    weights = np.array(list(mixture.values()))
    what = list(mixture)[rng.choice(len(weights), p=weights / weights.sum())]
    few = lambda: int(rng.uniform() < 0.2) + 1  # noqa: E731 - one or, less often, two shapes
    media: tuple[Picture | Motion, ...] = ()
    if what == "picture":
        shown = picture(rng)
        media, turns = (shown,), several(rng, lambda: about_picture(rng, shown), most_turns)
    elif what == "motion":
        seen = motion(rng)
        media, turns = (seen,), several(rng, lambda: about_motion(rng, seen), most_turns)
    elif what in ("two", "three"):
        pictures = tuple(picture(rng, few()) for _ in range(2 if what == "two" else 3))
        media, turns = pictures, several(rng, lambda: about_images(rng, pictures), min(most_turns, 2))
    elif what == "both":
        shown, seen = picture(rng, few()), motion(rng)
        media = (shown, seen) if rng.uniform() < 0.5 else (seen, shown)
        turns = several(rng, lambda: about_both(rng, shown, seen), min(most_turns, 2))
    else:
        phrasings = DESCRIBE + ANY + COUNT + COLOR + LONE_SHAPE + ORDER + HAPPENS + WAY + TWO + MIXED + CHAT
        turns = (Turn("no picture", pick(rng, phrasings, "circle"), NO_PICTURE),)
    system = pick(rng, SYSTEM) if rng.uniform() < 0.15 else None
    return Conversation(media, turns, system, bool(media) and rng.uniform() < 0.12)
