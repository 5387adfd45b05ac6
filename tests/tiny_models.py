"""Tiny random checkpoints in the true Hugging Face layout, made by the tests themselves.

Everything that a published Qwen3-VL directory has is there: config, generation config, safetensors, byte-level BPE
tokenizer, chat template, image and video processor files. Weights are random but large, so that greedy continuations
vary from prompt to prompt and margins between the first and second token are wide.

Next: tests/parity/test_model_text.py
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

Style = Literal["4.57", "5.x"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
EXTRA_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")  # added, but not special: their text is kept
VOCAB_SIZE = 640  # rows of the embedding; the tokenizer is a little shorter, as in the published checkpoints

CORPUS = (
    "Describe the image. What happens in the video? How many shapes are there? What color is the circle?",
    "a red circle and a blue square. a green star moves left. first a yellow triangle, then a purple square.",
    "<0.0 seconds> <0.5 seconds> <1.2 seconds> <2.8 seconds> <10.4 seconds> user\n assistant\n system\n tool\n",
    "You are a helpful assistant. The picture shows no person; the clip is eight frames long, at two per second.",
    "Compare both images and the clip, please: which one is brighter, which one is larger, and which came first?",
)

PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- set count = namespace(image=0, video=0) -%}
{%- macro render(content) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- set count.image = count.image + 1 -%}
{%- if add_vision_id is defined and add_vision_id -%}{{ 'Picture ' ~ count.image ~ ': ' }}{%- endif -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
{%- set count.video = count.video + 1 -%}
{%- if add_vision_id is defined and add_vision_id -%}{{ 'Video ' ~ count.video ~ ': ' }}{%- endif -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
{{ '\\n<tool_response>\\n' + render(message.content) + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- else -%}
{{ '<|im_start|>' + message.role + '\\n' + render(message.content) + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of Qwen's kind: NFC, Qwen's split pattern, its special tokens first."""
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
        vocab_size=VOCAB_SIZE - 20,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in EXTRA_TOKENS])
    return tokenizer


def make_tiny_qwen3vl(
    path: str | Path,
    *,
    family: str = "qwen3_vl",
    style: Style = "5.x",
    seed: int = 0,
    tie: bool = True,
    dtype: str = "float32",
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    max_shard_size: str = "5GB",
    image_pixels: tuple[int, int] = (64 * 64, 160 * 160),
    video_pixels: tuple[int, int] = (4 * 64 * 64, 16 * 96 * 96),
    eos_token_ids: tuple[int, ...] | None = None,
) -> Path:
    """Write a tiny random Qwen3-VL checkpoint directory.

    Args:
        path: directory to make.
        family: model type: "qwen3_vl", or its sibling "qwen3_vl_moe".
        style: spelling of config.json: "4.57" (rope_theta, rope_scaling) or "5.x" (rope_parameters).
        seed: of the weights.
        tie: head tied to the embedding.
        dtype: of the stored weights.
        text: overrides of text_config fields.
        vision: overrides of vision_config fields.
        max_shard_size: as transformers spells it; a small one gives several shards and an index.
        image_pixels: least and most pixels of an image.
        video_pixels: least and most pixels of a clip (frames counted).
        eos_token_ids: ids in generation_config.json; default <|im_end|> and <|endoftext|>. Ids past the tokenizer
            (VOCAB_SIZE - 1, say) make sequences that hardly ever end by themselves.

    Returns:
        The directory.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    _write_weights(path, tokenizer, family, seed, tie, dtype, text or {}, vision or {}, max_shard_size)
    if style == "4.57":
        _respell_config(path)
    ids = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    _write_processor_files(path, image_pixels, video_pixels, list(eos_token_ids or ids))
    return path


def _write_weights(
    path: Path,
    tokenizer: Tokenizer,
    family: str,
    seed: int,
    tie: bool,
    dtype: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    max_shard_size: str,
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 50_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision_config = {
        "depth": 3,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "patch_size": 16,
        "num_position_embeddings": 64,
        "out_hidden_size": text.get("hidden_size", 64),
        "deepstack_visual_indexes": [0, 1],
    }
    config = AutoConfig.for_model(
        family,
        text_config=text_config | text,
        vision_config=vision_config | vision,
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=tie,
    )
    model = AutoModelForImageTextToText.from_config(config)
    randomise(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)


def randomise(model: Any, seed: int) -> None:
    """Fill a transformers model with large random weights, the same for the same seed.

    The final norm's weights sum to zero: with a tied head, each token would otherwise be its own best continuation.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("language_model.norm.weight"):
                value = (noise - noise.mean()) * 6.0
            elif parameter.dim() == 1:
                value = noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif "embed" in name and "patch" not in name:
                value = noise * 0.15
            elif ".experts." in name:
                value = noise * 1.2 / parameter.shape[-1] ** 0.5
            else:
                value = noise * 1.2 / parameter[0].numel() ** 0.5
            parameter.copy_(value)


def _respell_config(path: Path) -> None:
    """Rewrite config.json as transformers 4.57 and the published checkpoints spell it."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = rope.pop("rope_theta")
    config["text_config"]["rope_scaling"] = rope
    config["vision_config"].pop("rope_parameters", None)
    config["vision_config"]["model_type"] = config["model_type"]
    config["transformers_version"] = "4.57.0"
    file.write_text(json.dumps(config, indent=2))


def _write_processor_files(
    path: Path, image_pixels: tuple[int, int], video_pixels: tuple[int, int], eos_token_ids: list[int]
) -> None:
    shared = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    files: dict[str, Any] = {
        "preprocessor_config.json": shared
        | {
            "size": {"shortest_edge": image_pixels[0], "longest_edge": image_pixels[1]},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        "video_preprocessor_config.json": shared
        | {
            "size": {"shortest_edge": video_pixels[0], "longest_edge": video_pixels[1]},
            "video_processor_type": "Qwen3VLVideoProcessor",
        },
        "generation_config.json": {
            "eos_token_id": eos_token_ids,
            "pad_token_id": 0,
            "do_sample": False,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
        },
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2))
    (path / "chat_template.jinja").write_text(re.sub(r"\n\Z", "", CHAT_TEMPLATE))
