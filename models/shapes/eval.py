"""Ask the checkpoint about held-out pictures and clips; an answer is right when it is exactly the expected one.

    python models/shapes/eval.py --per-kind 50

Greedy decoding by transformers' generate, on inputs of preprocess.py; the seed is disjoint from training's.
Prints a Markdown table and writes it to EVAL.md.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from preprocess import CHECKPOINT, Processor, collate
from questions import Conversation, conversation
from scenes import Motion
from transformers import Qwen3VLForConditionalGeneration

HELD_OUT_SEED = 90_000_049
ABOUT = {
    "describe": "one picture of 1 to 3 shapes, left to right",
    "count": "how many shapes",
    "colour": "the colour of a named shape",
    "shape": "the shape of a named colour",
    "order": "left to right; what is on the left, on the right, in the middle",
    "second question": "a later turn about the same media, after the model's own first answers",
    "motion": "what happens in a clip: colour, shape and direction",
    "direction": "which way it moves",
    "clip colour, shape": "the colour or the shape of what moves",
    "two images": "both, or one by its number",
    "three images": "all, or one by its number",
    "image, then video": "both, or one by its name",
    "video, then image": "both, or one by its name",
    "no picture": "a question without media",
}


class Answerer:
    """The checkpoint behind transformers' generate."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self.processor = Processor(checkpoint)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        """The greedy answer, special tokens left out."""
        config, inputs = self.model.config, self.processor(messages)
        tensors = collate([inputs], config.image_token_id, config.video_token_id)
        with torch.no_grad():
            ids = self.model.generate(**tensors, max_new_tokens=64, do_sample=False)
        return self.processor.tokenizer.decode(ids[0, len(inputs.ids) :], skip_special_tokens=True)


def kind_of(talk: Conversation, later: bool) -> str:
    """The row of the table that a conversation's last turn belongs to."""
    if later:
        return "second question"
    if talk.turns[-1].kind != "image + video":
        return talk.turns[-1].kind
    return "video, then image" if isinstance(talk.media[0], Motion) else "image, then video"


def ask(answer: Answerer, talk: Conversation) -> str:
    """The answer to the last turn; earlier turns get the model's own answers as history."""
    messages = talk.messages(0)
    for turn in talk.turns[1:]:
        messages.append({"role": "assistant", "content": answer(messages)})
        messages.append({"role": "user", "content": turn.question})
    return answer(messages)


def evaluate(answer: Answerer, per_kind: int, seed: int, show: int) -> tuple[Counter[str], Counter[str]]:
    """Right and asked for each kind, `per_kind` conversations each; prints the first `show` wrong answers."""
    rng = np.random.default_rng(seed)
    right, asked = Counter[str](), Counter[str]()
    while any(asked[kind] < per_kind for kind in ABOUT):
        later = asked["second question"] < per_kind and rng.uniform() < 0.3
        talk = conversation(rng, most_turns=3 if later else 1)
        kind = kind_of(talk, len(talk.turns) > 1)
        if asked[kind] == per_kind:
            continue
        said, wanted = ask(answer, talk), talk.turns[-1].answer
        asked[kind] += 1
        right[kind] += said == wanted
        if said != wanted and asked.total() - right.total() <= show:
            print(f"{kind}: {talk.turns[-1].question} wanted: {wanted} said: {said}", file=sys.stderr)
    return right, asked


def table(right: Counter[str], asked: Counter[str], command: str) -> str:
    """EVAL.md."""
    rows = [
        f"| {kind} | {about} | {right[kind]} / {asked[kind]} | {right[kind] / asked[kind]:.1%} |"
        for kind, about in ABOUT.items()
    ]
    total = f"| all | | {right.total()} / {asked.total()} | {right.total() / asked.total():.1%} |"
    head = ["| kind | about | right | share |", "|---|---|---|---|"]
    intro = f"Exact answers on held-out media, greedy decoding by transformers: `{command}`"
    return "\n".join(["# Evaluation", "", intro, "", *head, *rows, total, ""])


def main() -> None:
    """Read the flags, evaluate, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--per-kind", type=int, default=50)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "EVAL.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    answer = Answerer(args.checkpoint, getattr(torch, args.dtype))
    right, asked = evaluate(answer, args.per_kind, args.seed, args.show)
    command = f"python models/shapes/eval.py --per-kind {args.per_kind} --seed {args.seed} --dtype {args.dtype}"
    report = table(right, asked, command)
    args.out.write_text(report)
    print(report)


if __name__ == "__main__":
    main()
