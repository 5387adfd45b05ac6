"""Train the embedded model on generated conversations; only answers enter the loss.

    python models/shapes/train.py --init models/shapes/checkpoint --state /tmp/shapes --out models/shapes/checkpoint

The state directory holds what a later run needs to go on (weights, their moving average, optimizer, step). The
moving average is what `--out` receives, in bf16, each `--save-every` steps: a run can be cut at any time.

Next: models/shapes/eval.py
"""

import argparse
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batches import IGNORED, Batch, Encoder, Stream, quiet_worker
from preprocess import CHECKPOINT
from questions import MIXTURE, conversation
from torch import nn
from torch.utils.data import DataLoader
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, Qwen3VLForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

MONITOR_SEED = 7_000_001


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None = None,
    lengths: list[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA in fp32 under autocast (its bf16 backward on a CPU is slow), sequence by sequence where they are packed.

    Args: query (1, heads, num_tokens, head_dim), key and value alike; lengths: tokens of each packed sequence.
    """
    query, key, value = query.float(), key.float(), value.float()
    with torch.autocast("cpu", enabled=False):
        if lengths is None or not module.is_causal:  # pictures come frame by frame already
            return sdpa_attention_forward(module, query, key, value, None, **options)
        each = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        return torch.cat([sdpa_attention_forward(module, *qkv, None, **options)[0] for qkv in each], dim=1), None


AttentionInterface.register("packed", attention)
AttentionMaskInterface.register("packed", lambda *_, **__: None)


def answer_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (num_labels, vocab) fp32 at the positions that have a label, and those labels (num_labels,).

    The sequences go through the language model packed into one row: half of a padded batch would be padding.
    """
    media = {name: value for name, value in batch.items() if "grid" in name or "pixel" in name}
    ids, types, kept = batch["input_ids"], batch["mm_token_type_ids"], batch["attention_mask"].bool()
    grids = {name: value for name, value in media.items() if "grid" in name}
    positions, _ = model.model.get_rope_index(ids, types, attention_mask=batch["attention_mask"], **grids)
    lengths = kept.sum(1).tolist()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=ids[kept][None],
            mm_token_type_ids=types[kept][None],
            position_ids=positions[:, kept][:, None],
            lengths=lengths,
            use_cache=False,
            **media,
        ).last_hidden_state[0]
        # A sequence starts without a label, so the shift never crosses from one to the next.
        labels = batch["labels"][kept][1:]
        wanted = labels != IGNORED
        return model.lm_head(hidden[:-1][wanted]).float(), labels[wanted]


def monitor(model: nn.Module, encoder: Encoder, count: int) -> dict[str, tuple[int, int]]:
    """Right and asked for each kind of question: teacher-forced, which equals greedy decoding for exact answers."""
    rng, tally = np.random.default_rng(MONITOR_SEED), defaultdict(lambda: [0, 0])
    talks = [conversation(rng, most_turns=1) for _ in range(count)]
    encoded = sorted(((encoder.inputs(talk), talk) for talk in talks), key=lambda pair: len(pair[0].ids))
    model.eval()
    for at in range(0, count, 16):
        batch = encoder.batch([item for item, _ in encoded[at : at + 16]])
        with torch.no_grad():
            logits, labels = answer_logits(model, batch)
        rows = (batch["labels"][:, 1:] != IGNORED).nonzero()[:, 0]
        wrong = set(rows[logits.argmax(-1) != labels].tolist())
        for row, (_, talk) in enumerate(encoded[at : at + 16]):
            tally[talk.turns[0].kind][0] += row not in wrong
            tally[talk.turns[0].kind][1] += 1
    model.train()
    return {kind: (right, asked) for kind, (right, asked) in sorted(tally.items())}


class Average:
    """Moving average of the weights: what is saved and monitored."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.live = decay, list(model.parameters())
        self.mean = [value.detach().clone() for value in self.live]

    def update(self, step: int) -> None:
        """Blend the live weights in; faster while young."""
        torch._foreach_lerp_(self.mean, [v.detach() for v in self.live], 1 - min(self.decay, (step + 1) / (step + 10)))

    def swap(self) -> None:
        """Exchange live and averaged weights; call again to undo."""
        for value, mean in zip(self.live, self.mean, strict=True):
            value.data, mean.data = mean.data, value.data


def rate(step: int, args: argparse.Namespace) -> float:
    """Learning rate: linear warm-up, constant, then a linear fall over the last `--decay` steps."""
    left = (args.steps - step) / max(args.decay, 1)
    return args.lr * min(1.0, (step + 1 - args.first) / args.warmup, max(left, 0.02))


def save(
    model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, step: int, args: argparse.Namespace
) -> None:
    """Write the state, then the averaged weights in bf16 as a Hugging Face checkpoint."""
    state = {"model": model.state_dict(), "mean": average.mean, "optimizer": optimizer.state_dict(), "step": step}
    args.state.mkdir(parents=True, exist_ok=True)
    torch.save(state, args.state / "state.new")
    (args.state / "state.new").replace(args.state / "state.pt")
    average.swap()
    copy = Qwen3VLForConditionalGeneration(model.config).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    average.swap()
    copy.save_pretrained(args.state / "export")
    if args.out:
        shutil.copyfile(args.state / "export" / "model.safetensors", args.out / "model.new")
        (args.out / "model.new").replace(args.out / "model.safetensors")


def build(args: argparse.Namespace) -> tuple[nn.Module, Average, torch.optim.Optimizer]:
    """Model, moving average and optimizer, from the state where there is one; sets args.first, the first step."""
    if args.init:
        model = Qwen3VLForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
    else:
        model = Qwen3VLForConditionalGeneration(AutoConfig.from_pretrained(CHECKPOINT)).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    average = Average(model, args.average)
    args.first = 0
    if (args.state / "state.pt").exists():
        state = torch.load(args.state / "state.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(average.mean, state["mean"])
        args.first = state["step"]
    model.set_attn_implementation("packed")
    # The patch convolution has kernel = stride: as a linear layer on the rows it is much faster here.
    patches = model.model.visual.patch_embed
    patches.forward = lambda rows: nn.functional.linear(rows, patches.proj.weight.flatten(1), patches.proj.bias)
    return model.train(), average, optimizer


def learn(model: nn.Module, batches: list[Batch]) -> float:
    """Accumulate the gradient of one step's micro-batches; returns the mean loss of a label."""
    count = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        logits, labels = answer_logits(model, batch)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total


def report(model: nn.Module, average: Average, encoder: Encoder, step: int, count: int) -> None:
    """Print what the averaged weights answer right."""
    average.swap()
    table = monitor(model, encoder, count)
    average.swap()
    kinds = " ".join(f"[{kind} {right}/{asked}]" for kind, (right, asked) in table.items())
    print(f"{step} right {sum(right for right, _ in table.values())}/{count} {kinds}", flush=True)


def train(args: argparse.Namespace) -> None:
    """Run from the state, or from `--init`, to `--steps`."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    encoder = Encoder(CHECKPOINT)
    model, average, optimizer = build(args)
    shares = MIXTURE | {kind: float(share) for kind, share in (pair.split("=") for pair in args.mixture)}
    # The first step enters the seed, so that a resumed run does not repeat its data.
    stream = Stream(encoder, args.seed * 1_000_003 + args.first, args.batch, args.micro, shares)
    steps = iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4, worker_init_fn=quiet_worker))
    began, losses = time.monotonic(), []
    for step in range(args.first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args)
        losses.append(learn(model, next(steps)))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
        done = step + 1
        if done % 50 == 0:
            pace = (time.monotonic() - began) / (done - args.first)
            print(f"{done} loss {np.mean(losses[-50:]):.4f}, {pace:.2f} s a step", flush=True)
        if done % args.save_every == 0 or done == args.steps:
            save(model, average, optimizer, done, args)
            report(model, average, encoder, done, args.monitor)


def main() -> None:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, help="checkpoint to start from; without it, from random weights")
    parser.add_argument("--state", type=Path, required=True, help="directory to resume from and to save into")
    parser.add_argument("--out", type=Path, help="checkpoint whose model.safetensors to replace")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--decay", type=int, default=1500, help="steps of the final fall of the learning rate")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--batch", type=int, default=24, help="conversations in a step")
    parser.add_argument("--micro", type=int, default=1, help="micro-batches in a step")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--average", type=float, default=0.995, help="decay of the moving average")
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--monitor", type=int, default=256, help="held-out conversations asked at each save")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixture", nargs="*", default=[], metavar="KIND=SHARE", help="shares other than MIXTURE's")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
