"""A byte-level BPE tokenizer with a real vocabulary's size, trained on made-up words.

A random model's tokens are spread over the whole vocabulary; so that every one of them has text, as in a published
checkpoint, the tokenizer is about as long as the embedding.

Next: workload.py
"""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tiny_models import CORPUS, EXTRA_TOKENS, PRETOKENIZE_PATTERN, SPECIAL_TOKENS

_ONSETS = ("", "b", "br", "c", "ch", "d", "dr", "f", "g", "h", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
_CODAS = ("", "", "l", "m", "n", "nd", "r", "s", "t", "x")
_UNUSED_ROWS = 24  # rows of the embedding past the tokenizer's last id, as the published checkpoints have them


def build_vocabulary(size: int) -> Tokenizer:
    """Return a tokenizer of Qwen's kind, the same each time.

    Args:
        size: rows of the embedding; the tokenizer is a little shorter.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - _UNUSED_ROWS,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS * 100, *made_up_lines(random.Random(0), words=2 * size)], trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in EXTRA_TOKENS])
    return tokenizer


def made_up_lines(rng: random.Random, words: int, per_line: int = 16) -> list[str]:
    """Return lines of pronounceable words, of one to four syllables."""
    made = [_word(rng) for _ in range(words)]
    return [" " + " ".join(made[start : start + per_line]) for start in range(0, words, per_line)]


def _word(rng: random.Random) -> str:
    syllables = rng.choices((1, 2, 3, 4), weights=(2, 4, 3, 1))[0]
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
