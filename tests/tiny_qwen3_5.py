"""Tiny random Qwen3.5 and Qwen3.5-MoE checkpoints in their true Hugging Face layout.

As `tests/tiny_models.py`, with what is this family's own: linear attention in most layers, norms centred at zero, a
multi-token predictor that nobody reads, combining marks among the letters, and a template that strips and thinks.

Next: tests/parity/test_model_qwen3_5.py
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from tests.tiny_models import Style, make_tiny_qwen3vl
from tests.tiny_models import build_tokenizer as build_qwen_tokenizer

PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LAYER_TYPES = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
FULL_ATTENTION_INTERVAL = 3  # says the same

CHAT_TEMPLATE = """\
{%- set count = namespace(image=0, video=0) -%}
{%- macro render(content, counted) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content is iterable and content is not mapping -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
{%- if counted -%}{%- set count.image = count.image + 1 -%}{%- endif -%}
{%- if add_vision_id -%}{{- 'Picture ' ~ count.image ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' or 'video' in part -%}
{%- if counted -%}{%- set count.video = count.video + 1 -%}{%- endif -%}
{%- if add_vision_id -%}{{- 'Video ' ~ count.video ~ ': ' -}}{%- endif -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part.text -}}
{%- else -%}
{{- raise_exception('Unexpected part of a message.') -}}
{%- endif -%}
{%- endfor -%}
{%- elif content is not none -%}
{{- raise_exception('Unexpected content of a message.') -}}
{%- endif -%}
{%- endmacro -%}
{%- if not messages -%}{{- raise_exception('There are no messages.') -}}{%- endif -%}
{%- set system = render(messages[0].content, false) | trim if messages[0].role == 'system' else '' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n# Tools\\n\\nThese functions can be called:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>' -}}
{%- if system -%}{{- '\\n\\n' ~ system -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' ~ system ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- set last = namespace(query=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.query = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if last.query < 0 -%}{{- raise_exception('No message of a user.') -}}{%- endif -%}
{%- for message in messages -%}
{%- set content = render(message.content, true) | trim -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}{{- raise_exception('A system message stands first.') -}}{%- endif -%}
{%- elif message.role == 'user' -%}
{{- '<|im_start|>user\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{%- set thought = '' -%}
{%- if '</think>' in content -%}
{%- set thought = content.split('</think>')[0].split('<think>')[-1] | trim -%}
{%- set content = content.split('</think>')[-1] | trim -%}
{%- endif -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if loop.index0 > last.query -%}{{- '<think>\\n' ~ thought ~ '\\n</think>\\n\\n' -}}{%- endif -%}
{{- content -}}
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{{- '\\n\\n<tool_call>\\n<function=' ~ call.name ~ '>\\n' -}}
{%- for name, value in (call.arguments or {}) | items -%}
{{- '<parameter=' ~ name ~ '>\\n' ~ (value if value is string else value | tojson) ~ '\\n</parameter>\\n' -}}
{%- endfor -%}
{{- '</function>\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.previtem is undefined or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' -}}
{%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{{- raise_exception('Unexpected role of a message.') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def build_tokenizer() -> Tokenizer:
    """Return the tiny tokenizer of Qwen's kind, with Qwen3.5's split pattern."""
    tokenizer = build_qwen_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def make_tiny_qwen3_5(
    path: str | Path,
    *,
    family: str = "qwen3_5",
    style: Style = "5.x",
    text_only: bool = False,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Write a tiny random Qwen3.5 checkpoint directory: four layers, the third of them full attention.

    Args:
        path: directory to make.
        family: model type: "qwen3_5", or its sibling "qwen3_5_moe".
        style: "5.x", or "4.57": rope_theta and partial_rotary_factor outside of rope_scaling, and
            full_attention_interval in place of layer_types.
        text_only: the language model alone, its config flat, as the architecture for text has it.
        text: overrides of text_config fields.
        vision: overrides of vision_config fields.
        options: as for `make_tiny_qwen3vl`.

    Returns:
        The directory.
    """
    fields: dict[str, Any] = {
        "num_hidden_layers": 4,
        "layer_types": LAYER_TYPES,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 50_000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
    }
    seed = options.get("seed", 0)
    tower = {"deepstack_visual_indexes": []} | (vision or {})
    path = make_tiny_qwen3vl(path, family=family, style=style, text=fields | (text or {}), vision=tower, **options)
    _rewrite_weights(path, seed, text_only)
    _rewrite_config(path, style, text_only)
    _rewrite_tokenizer(path)
    return path


def make_tiny_qwen3_5_moe(path: str | Path, *, text: dict[str, Any] | None = None, **options: Any) -> Path:
    """Write a tiny random Qwen3.5-MoE checkpoint directory: 8 experts, 3 a token, and one that all share."""
    experts = {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 48,
    }
    return make_tiny_qwen3_5(path, family="qwen3_5_moe", text=experts | (text or {}), **options)


_CENTRED = ("input_layernorm.weight", "post_attention_layernorm.weight", "q_norm.weight", "k_norm.weight")


def _rewrite_weights(path: Path, seed: int, text_only: bool) -> None:
    """Centre the norms at zero, spread how fast heads forget, add a predictor's weights; leave vision out if asked."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    for number, file in enumerate(sorted(path.glob("*.safetensors"))):
        tensors = {}
        for name, tensor in load_file(file).items():
            if name.endswith(_CENTRED):
                tensor -= 1
            elif name.endswith("language_model.norm.weight"):
                tensor = tensor / 2 - 1
            elif name.endswith("linear_attn.out_proj.weight"):
                tensor = tensor / 2  # what a nearly empty state reads is normed: rounding errors grow with it
            elif name.endswith("A_log"):
                tensor = torch.linspace(-4, 1, len(tensor)).to(tensor.dtype)
            if not (text_only and ".visual." in name):
                tensors[name.replace("model.language_model.", "model.") if text_only else name] = tensor
        if number == 0:
            for name in ("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "mtp.norm.weight"):
                tensors[name] = torch.randn(8, 8, generator=generator)
        save_file(tensors, file, metadata={"format": "pt"})


def _rewrite_config(path: Path, style: str, text_only: bool) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    if style == "5.x":
        del config["vision_config"]["deepstack_visual_indexes"]
    if style == "4.57":
        text["partial_rotary_factor"] = text["rope_scaling"].pop("partial_rotary_factor")
        del text["layer_types"]
        text["full_attention_interval"] = FULL_ATTENTION_INTERVAL
    if text_only:
        architecture = config["architectures"][0].replace("ForConditionalGeneration", "ForCausalLM")
        config = text | {"architectures": [architecture], "tie_word_embeddings": config["tie_word_embeddings"]}
        for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
            (path / name).unlink()
    file.write_text(json.dumps(config, indent=2))


def _rewrite_tokenizer(path: Path) -> None:
    build_tokenizer().save(str(path / "tokenizer.json"))
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "Qwen3_5Tokenizer"}, indent=2))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE.removesuffix("\n"))
