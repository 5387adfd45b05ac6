"""Tiny random InternS1-Pro checkpoints in the layout of its release, which transformers has no classes for.

As released: one tensor for each expert, FoPE's buffers, FP8 in blocks under powers of two; a tokenizer of vocab.json
and merges.txt, whose added tokens only tokenizer_config.json knows, with pieces of a domain's vocabulary behind them; a
template that numbers pictures and clips and says nothing of time series.

Next: tests/parity/interns1_pro_reference.py
"""

import json
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer

from tests.tiny_interns1_pro_weights import FP8_BLOCK, Json, quantised, random_weights, shapes
from tests.tiny_models import EXTRA_TOKENS, SPECIAL_TOKENS, VOCAB_SIZE, build_tokenizer

SERIES_TOKENS = ("<|ts|>", "<|/ts|>", "<TS_CONTEXT>")
DOMAIN_TOKENS = ("<SMILES>", "</SMILES>")  # added, but not special
DOMAIN_PIECES = ("<|SMILES_<unk>|>", "<|SMILES_cc|>", "<|SMILES_=O|>", "<|SMILES_▁C|>")

TEXT_CONFIG: Json = {
    "model_type": "interns1_pro_text",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "router_n_groups": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,  # keeps 10 of 16 frequencies
    "rope_theta": 50_000.0,
    "rope_scaling": {"rope_type": "default", "fope_init_factor": 0.5, "fope_sep_head": True, "num_inv_freq": None},
    "dtype": "float32",
}
VISION_CONFIG: Json = {
    "model_type": "interns1_pro_vision",
    "depth": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 48,
    "in_channels": 3,
    "intermediate_size": 80,
    "num_heads": 3,
    "num_position_embeddings": 64,
    "out_hidden_size": 64,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
SERIES_CONFIG: Json = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "max_source_positions": 20,
    "num_mel_bins": 12,
    "activation_function": "gelu",
    "ts_adapt_in_dim": 32,
    "ts_concat_subsampling_in_channels": 16,
    "ts_concat_subsampling_concat_size": 2,
    "ts_adapt_out_dim": 24,
    "ts_hidden_dim": 24,
    "out_hidden_size": 64,
}

CHAT_TEMPLATE = """\
{%- set seen = namespace(image=0, video=0) -%}
{%- macro render(content, count) -%}
{%- if content is string -%}
{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}
{%- if count -%}{%- set seen.image = seen.image + 1 -%}{%- endif -%}
{{ 'Picture ' ~ seen.image ~ ': <|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' -%}
{%- if count -%}{%- set seen.video = seen.video + 1 -%}{%- endif -%}
{{ 'Video ' ~ seen.video ~ ': <|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
{{ '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' -%}{{ render(messages[0].content, false) + '\\n\\n' }}{%- endif -%}
{{ '# Tools\\n<tools>' }}
{%- for tool in tools -%}{{ '\\n' + (tool | tojson) }}{%- endfor -%}
{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' -%}
{{ '<|im_start|>system\\n' + render(messages[0].content, false) + '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- set content = render(message.content, true) -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' or not loop.first -%}
{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think></think>\\n\\n' }}
{%- else -%}{{ '<think>' }}{%- endif -%}
{%- endif -%}"""


def build_intern_tokenizer() -> Tokenizer:
    """Return the whole tokenizer: the shared one, series and domain tokens behind it."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SERIES_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in DOMAIN_TOKENS])
    return tokenizer


def make_tiny_interns1_pro(
    path: str | Path,
    *,
    seed: int = 0,
    text: Json | None = None,
    vision: Json | None = None,
    series: Json | None = None,
    with_vision: bool = True,
    with_series: bool = True,
    fp8: bool = False,
    image_pixels: tuple[int, int] = (64 * 64, 160 * 160),
    video_pixels: tuple[int, int] = (4 * 64 * 64, 16 * 96 * 96),
    eos_token_ids: tuple[int, ...] | None = None,
) -> Path:
    """Write a tiny random InternS1-Pro checkpoint directory.

    Args:
        path: directory to make.
        seed: of the weights.
        text: overrides of text_config fields.
        vision: overrides of vision_config fields.
        series: overrides of ts_config fields.
        with_vision: whether there is a vision tower.
        with_series: whether there is a time series encoder; the first release had none.
        fp8: whether the language model's projections and experts are e4m3 in blocks of FP8_BLOCK.
        image_pixels: least and most pixels of an image.
        video_pixels: least and most pixels of a clip (frames counted).
        eos_token_ids: ids in generation_config.json; default <|im_end|> and <|endoftext|>.

    Returns:
        The directory.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = build_intern_tokenizer()
    config = _config(tokenizer, TEXT_CONFIG | (text or {}))
    if with_vision:
        config["vision_config"] = VISION_CONFIG | (vision or {})
    if with_series:
        config["ts_config"] = SERIES_CONFIG | (series or {})
    weights = random_weights(shapes(config), seed)
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": list(FP8_BLOCK),
            "activation_scheme": "dynamic",
        }  # fmt: skip
        weights = quantised(weights)
    _write_json(path / "config.json", config)
    save_file(weights, path / "model.safetensors")
    write_intern_tokenizer(path, tokenizer)
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_processor_files(path, tokenizer, image_pixels, video_pixels, eos_token_ids)
    return path


def _config(tokenizer: Tokenizer, text: Json) -> Json:
    ids = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    text = {"eos_token_id": tokenizer.token_to_id("<|im_end|>"), "bos_token_id": 0} | text
    return {
        "architectures": ["InternS1ProForConditionalGeneration"],
        "model_type": "interns1_pro",
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "text_config": text,
        **{name: tokenizer.token_to_id(token) for name, token in ids.items()},
    }


def write_intern_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer files of the release: vocab.json, merges.txt, and three that tell of added tokens."""
    added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
    state = json.loads(tokenizer.to_str())
    vocab = {token: token_id for token, token_id in state["model"]["vocab"].items() if token not in added}
    first = tokenizer.get_vocab_size(with_added_tokens=True)
    _write_json(path / "vocab.json", vocab | {piece: first + i for i, piece in enumerate(DOMAIN_PIECES)})
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    special = {*SPECIAL_TOKENS, *SERIES_TOKENS}
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    decoder = {
        str(token_id): {"content": token, "special": token in special} | flags
        for token, token_id in sorted(added.items(), key=lambda pair: pair[1])
    }
    assert set(added) == special | {*EXTRA_TOKENS, *DOMAIN_TOKENS}
    settings = {
        "tokenizer_class": "InternS1Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_interns1.InternS1Tokenizer", None]},
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token != "<|endoftext|>"],
        "extra_special_tokens": {},
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "offset_SMILES": first,
    }
    _write_json(path / "tokenizer_config.json", settings | named)
    _write_json(path / "added_tokens.json", added)
    _write_json(path / "special_tokens_map.json", {n: {"content": token} | flags for n, token in named.items()})


def _write_processor_files(
    path: Path,
    tokenizer: Tokenizer,
    image_pixels: tuple[int, int],
    video_pixels: tuple[int, int],
    eos_token_ids: tuple[int, ...] | None,
) -> None:
    shared = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    for name, (least, most) in (
        ("preprocessor_config.json", image_pixels),
        ("video_preprocessor_config.json", video_pixels),
    ):
        _write_json(path / name, shared | {"size": {"shortest_edge": least, "longest_edge": most}})
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    start = tokenizer.token_to_id("<|endoftext|>")
    _write_json(
        path / "generation_config.json",
        {
            "bos_token_id": start, "pad_token_id": start, "eos_token_id": list(eos_token_ids or ends),
            "do_sample": False,
        },
    )  # fmt: skip


def _write_json(file: Path, content: Json) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
