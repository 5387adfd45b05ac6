"""Tiny random GLM-4.1V, GLM-4.5V and GLM-4.6V checkpoints in their true Hugging Face layout.

As `tests/tiny_models.py`, with what is GLM's own: special tokens behind the ordinary vocabulary, digits in groups of up
to three, a template without end-of-turn tokens, patches of 14 pixels and CLIP's colour statistics.

Next: tests/parity/test_model_glm4v.py
"""

import json
import math
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny_models import CORPUS, VOCAB_SIZE, Style, randomise

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
EXTRA_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # added, but not special: their text is kept

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
<|system|>
{{ message.content }}
{%- elif message.role == 'assistant' -%}
<|assistant|>
{{ message.content }}
{%- elif message.role in ('user', 'tool') -%}
{{ '<|observation|>\\n' if message.role == 'tool' else '<|user|>\\n' }}
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' or 'video' in part -%}
<|begin_of_video|><|video|><|end_of_video|>
{%- elif part.type == 'image' or 'image' in part -%}
<|begin_of_image|><|image|><|end_of_image|>
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message.role == 'user' and enable_thinking is defined and not enable_thinking -%}{{ '/nothink' }}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{{ '<think></think>\\n' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif -%}
"""


def build_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer of GLM's kind: no normaliser, its special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(SPECIAL_TOKENS) + len(EXTRA_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 16 - added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in EXTRA_TOKENS])
    return tokenizer


def make_tiny_glm4v(path: str | Path, *, family: str = "glm4v", **options: Any) -> Path:
    """Write a tiny random GLM-4.1V checkpoint directory, or GLM-4.6V with family "glm46v"; options as `_make`."""
    text = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    return _make(Path(path), family, text, **options)


def make_tiny_glm4v_moe(path: str | Path, **options: Any) -> Path:
    """Write a tiny random GLM-4.5V checkpoint: one dense layer, then experts in groups; options as `_make`."""
    text = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_hidden_layers": 3,
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": True,
    }
    return _make(Path(path), "glm4v_moe", text, **options)


def _make(
    path: Path,
    family: str,
    family_text: dict[str, Any],
    *,
    style: Style = "5.x",
    seed: int = 0,
    tie: bool = False,
    dtype: str = "float32",
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    max_shard_size: str = "5GB",
    image_pixels: tuple[int, int] = (2 * 56 * 56, 2 * 140 * 140),
    video_pixels: tuple[int, int] = (4 * 56 * 56, 16 * 84 * 84),
    eos_token_ids: tuple[int, ...] | None = None,
) -> Path:
    """Write a checkpoint directory.

    Args:
        path: directory to make.
        family: model type: "glm4v", "glm46v" or "glm4v_moe".
        family_text: text_config fields of the family.
        style: spelling of config.json: "4.57" (rope_theta, rope_scaling) or "5.x" (rope_parameters).
        seed: of the weights.
        tie: head tied to the embedding.
        dtype: of the stored weights.
        text: overrides of text_config fields.
        vision: overrides of vision_config fields.
        max_shard_size: as transformers spells it; a small one gives several shards and an index.
        image_pixels: least and most pixels of an image, *two frames counted* as GLM's processor does.
        video_pixels: least and most pixels of a clip (frames counted).
        eos_token_ids: ids in generation_config.json; default endoftext, user and observation. Ids past the tokenizer
            (VOCAB_SIZE - 1, say) make sequences that hardly ever end by themselves.

    Returns:
        The directory.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(path / "tokenizer.json"))
    ids = tuple(tokenizer.get_vocab()[token] for token in ("<|endoftext|>", "<|user|>", "<|observation|>"))
    config = _config(tokenizer, family, family_text | (text or {}), vision or {}, tie)
    config["text_config"]["eos_token_id"] = list(ids)
    _write_weights(path, config, seed, dtype, max_shard_size)
    if style == "4.57":
        _respell_config(path)
    _write_processor_files(path, family, image_pixels, video_pixels, list(eos_token_ids or ids))
    return path


def _config(
    tokenizer: Tokenizer, family: str, text: dict[str, Any], vision: dict[str, Any], tie: bool
) -> dict[str, Any]:
    text_config = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 3, 3],
            "partial_rotary_factor": 0.5,
        },
    } | text
    vision_config = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "image_size": 112,
        "patch_size": 14,
        "out_hidden_size": text_config["hidden_size"],
    } | vision
    markers = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    ids = {name: tokenizer.token_to_id(token) for name, token in markers.items()}
    shared = {"model_type": family, "tie_word_embeddings": tie}
    return {"text_config": text_config, "vision_config": vision_config} | shared | ids


def _write_weights(path: Path, config: dict[str, Any], seed: int, dtype: str, max_shard_size: str) -> None:
    import torch
    import transformers

    prefix = {"glm4v": "Glm4v", "glm46v": "Glm46V", "glm4v_moe": "Glm4vMoe"}[config.pop("model_type")]
    settings = getattr(transformers, f"{prefix}Config")(**config)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(settings)
    randomise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name and parameter.dim() == 3:  # (experts, out, in): by the width of one expert's input
                parameter.mul_(math.sqrt(parameter.shape[1]))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)


def _respell_config(path: Path) -> None:
    """Rewrite config.json as transformers 4.57 and the published checkpoints spell it."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"]["rope_theta"] = rope.pop("rope_theta")
    config["text_config"]["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["text_config"]["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["vision_config"].pop("rope_parameters", None)
    config["vision_config"]["model_type"] = config["model_type"]
    config["transformers_version"] = "4.57.0"
    file.write_text(json.dumps(config, indent=2))


def _write_processor_files(
    path: Path, family: str, image_pixels: tuple[int, int], video_pixels: tuple[int, int], eos_token_ids: list[int]
) -> None:
    prefix = "Glm46V" if family == "glm46v" else "Glm4v"
    shared = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "processor_class": f"{prefix}Processor",
    }
    files: dict[str, Any] = {
        "preprocessor_config.json": shared
        | {
            "size": {"shortest_edge": image_pixels[0], "longest_edge": image_pixels[1]},
            "image_processor_type": f"{prefix}ImageProcessor",
        },
        "video_preprocessor_config.json": shared
        | {
            "size": {"shortest_edge": video_pixels[0], "longest_edge": video_pixels[1]},
            "video_processor_type": f"{prefix}VideoProcessor",
        },
        "generation_config.json": {
            "eos_token_id": eos_token_ids,
            "pad_token_id": eos_token_ids[0],
            "do_sample": False,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "bos_token": None,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "padding_side": "left",
            "processor_class": f"{prefix}Processor",
        },
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content, indent=2))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE.removesuffix("\n"))
