"""InternS1-Pro in float64, straight from its formulas: plain numpy, whole sequences, no cache, no batch.

It shares nothing with the worker: it reads the checkpoint's tensors by their stored names and its config.json, and says
each formula once more, as slowly as it likes. Source: shared facts on the released remote code and on lmdeploy.

Next: tests/parity/test_model_interns1_pro.py
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

Array = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    """The exact one."""
    return x * (1 + _erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Array) -> Array:
    """The one by tanh."""
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x: Array) -> Array:
    """Over the last axis."""
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / rms(x) * weight."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def attention(query: Array, key: Array, value: Array, causal: bool) -> Array:
    """(n, heads, dim) each -> (n, heads * dim)."""
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(len(query), dtype=bool), scores, -np.inf)
    return np.einsum("hqk,khd->qhd", softmax(scores), value).reshape(len(query), -1)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x, cos, sin: (n, heads, dim); element i pairs with element i + dim / 2."""
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate((-second, first), axis=-1) * sin


class Reference:
    """One checkpoint directory, as float64.

    Args:
        path: directory with config.json and model.safetensors, names as released.
        weights: tensors in place of the file's, such as dequantised ones.
    """

    def __init__(self, path: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        stored = load_file(path / "model.safetensors") if weights is None else weights
        self.weights: dict[str, Array] = {name: tensor.double().numpy() for name, tensor in stored.items()}

    def linear(self, name: str, x: Array) -> Array:
        """x W^T, plus the bias where there is one."""
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def layer_norm(self, name: str, x: Array, eps: float) -> Array:
        """(x - mean) / std * weight + bias."""
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    # The language model.

    def tables(self, positions: Array) -> tuple[Array, Array]:
        """FoPE's cosine and sine, (n, kv_heads, head_dim)."""
        text = self.config["text_config"]
        dim, heads = text["head_dim"], text["num_key_value_heads"]
        inv = text["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        asked = text["rope_scaling"]["num_inv_freq"]
        kept = inv[:asked] if asked is not None else inv[inv > 2 * math.pi / text["max_position_embeddings"]]
        angles = positions[:, None] * kept
        tables = []
        for name, values in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            mixing = self.weights[f"model.language_model.rotary_emb.{name}_coef"]
            half = np.ones((len(positions), heads, dim // 2))
            for head in range(heads):
                half[:, head, : len(kept)] = values @ (mixing[head] if mixing.ndim == 3 else mixing)
            tables.append(np.concatenate((half, half), axis=-1))
        return tables[0], tables[1]

    def swiglu(self, name: str, x: Array) -> Array:
        """One expert, or a whole dense layer."""
        gate = self.linear(f"{name}.gate_proj", x)
        return self.linear(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * self.linear(f"{name}.up_proj", x))

    def experts(self, name: str, x: Array) -> Array:
        """The experts of each token, chosen inside each group."""
        text = self.config["text_config"]
        count, groups = text["num_experts"], text["router_n_groups"]
        size, each = count // groups, text["num_experts_per_tok"] // groups
        out = np.zeros_like(x)
        for row, (token, scores) in enumerate(zip(x, softmax(self.linear(f"{name}.gate", x)), strict=True)):
            chosen = [g * size + i for g in range(groups) for i in np.argsort(-scores[g * size :][:size])[:each]]
            for expert in chosen:
                weight = scores[expert] / scores[chosen].sum()
                out[row] += weight * self.swiglu(f"{name}.experts.{expert}", token)
        return out

    def logits(self, ids: list[int], embeddings: dict[int, Array]) -> Array:
        """Logits of every token, (n, vocab); `embeddings` stand in for the rows of placeholders."""
        text = self.config["text_config"]
        dim, heads, kv_heads, eps = (
            text["head_dim"], text["num_attention_heads"], text["num_key_value_heads"], text["rms_norm_eps"],
        )  # fmt: skip
        x = self.weights["model.language_model.embed_tokens.weight"][ids].copy()
        for row, embedding in embeddings.items():
            x[row] = embedding
        cos, sin = self.tables(np.arange(len(ids), dtype=np.float64))
        group = heads // kv_heads
        for index in range(text["num_hidden_layers"]):
            layer = f"model.language_model.layers.{index}"
            normed = rms_norm(x, self.weights[f"{layer}.input_layernorm.weight"], eps)
            query, key, value = (
                self.linear(f"{layer}.self_attn.{part}_proj", normed).reshape(len(ids), -1, dim) for part in "qkv"
            )
            query = rms_norm(query, self.weights[f"{layer}.self_attn.q_norm.weight"], eps)
            key = rms_norm(key, self.weights[f"{layer}.self_attn.k_norm.weight"], eps)
            query = rotate(query, np.repeat(cos, group, axis=1), np.repeat(sin, group, axis=1))
            key, value = (np.repeat(part, group, axis=1) for part in (rotate(key, cos, sin), value))
            x = x + self.linear(f"{layer}.self_attn.o_proj", attention(query, key, value, causal=True))
            normed = rms_norm(x, self.weights[f"{layer}.post_attention_layernorm.weight"], eps)
            sparse = f"{layer}.mlp.gate.weight" in self.weights
            x = x + (self.experts if sparse else self.swiglu)(f"{layer}.mlp", normed)
        x = rms_norm(x, self.weights["model.language_model.norm.weight"], eps)
        return self.linear("lm_head", x)

    # The vision tower.

    def vision(self, pixels: NDArray[np.uint8]) -> Array:
        """uint8 (frames, height, width, 3) -> (tokens, hidden); a still is one frame."""
        config = self.config["vision_config"]
        side, merge, depth = config["patch_size"], config["spatial_merge_size"], config["depth"]
        frames = (pixels.astype(np.float64) / 255 - 0.5) / 0.5
        if len(frames) % 2:
            frames = np.concatenate((frames, frames[-1:]))
        rows, columns = frames.shape[1] // side, frames.shape[2] // side
        places = [
            (block_row * merge + row, block_column * merge + column)
            for block_row in range(rows // merge)
            for block_column in range(columns // merge)
            for row in range(merge)
            for column in range(merge)
        ]
        table = np.stack([self._table_at(row, column, rows, columns) for row, column in places])
        angles = self._vision_angles(np.array(places))
        outputs = []
        for pair in range(len(frames) // 2):
            x = np.stack([self._patch(frames[2 * pair : 2 * pair + 2], row, column) for row, column in places]) + table
            for index in range(depth):
                x = self._vision_block(f"model.visual.blocks.{index}", x, angles)
            outputs.append(x)
        x = self.layer_norm("model.visual.merger.norm", np.concatenate(outputs), 1e-6)
        x = x.reshape(-1, merge**2 * x.shape[-1])
        return self.linear("model.visual.merger.linear_fc2", gelu(self.linear("model.visual.merger.linear_fc1", x)))

    def _patch(self, pair: Array, row: int, column: int) -> Array:
        """Two frames' pixels at one place, channel by channel, times the kernel."""
        side = self.config["vision_config"]["patch_size"]
        block = pair[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        kernel = self.weights["model.visual.patch_embed.proj.weight"]
        out = kernel.reshape(len(kernel), -1) @ block.transpose(3, 0, 1, 2).ravel()
        return out + self.weights["model.visual.patch_embed.proj.bias"]

    def _table_at(self, row: int, column: int, rows: int, columns: int) -> Array:
        """The learned table, bilinear, corners on corners."""
        table = self.weights["model.visual.pos_embed.weight"]
        side = math.isqrt(len(table))
        grid = table.reshape(side, side, -1)
        y, x = (i * (side - 1) / (size - 1) if size > 1 else 0.0 for i, size in ((row, rows), (column, columns)))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, side - 1), min(left + 1, side - 1)
        dy, dx = y - top, x - left
        upper = grid[top, left] * (1 - dx) + grid[top, right] * dx
        lower = grid[bottom, left] * (1 - dx) + grid[bottom, right] * dx
        return upper * (1 - dy) + lower * dy

    def _vision_angles(self, places: NDArray[np.int64]) -> Array:
        config = self.config["vision_config"]
        dim = config["hidden_size"] // config["num_heads"]
        inv = 10_000.0 ** (-2 * np.arange(dim // 4) / (dim // 2))
        half = np.concatenate((places[:, :1] * inv, places[:, 1:] * inv), axis=1)
        return np.concatenate((half, half), axis=1)[:, None]

    def _vision_block(self, name: str, x: Array, angles: Array) -> Array:
        heads = self.config["vision_config"]["num_heads"]
        qkv = self.linear(f"{name}.attn.qkv", self.layer_norm(f"{name}.norm1", x, 1e-6))
        query, key, value = qkv.reshape(len(x), 3, heads, -1).transpose(1, 0, 2, 3)
        query, key = (rotate(part, np.cos(angles), np.sin(angles)) for part in (query, key))
        x = x + self.linear(f"{name}.attn.proj", attention(query, key, value, causal=False))
        inner = gelu_tanh(self.linear(f"{name}.mlp.linear_fc1", self.layer_norm(f"{name}.norm2", x, 1e-6)))
        return x + self.linear(f"{name}.mlp.linear_fc2", inner)

    # The time series encoder.

    def series(self, samples: NDArray[np.float32], rate: float) -> Array:
        """(length, channels) at `rate` (0 = unknown) -> (tokens, hidden)."""
        x = samples.astype(np.float64)
        x = ((x - x.mean(0)) / (x.std(0) + 1e-8))[:240_000]
        length, channels = x.shape
        if rate <= 0:
            rate = max(length / 4, 1)
        stride = math.floor(160 / (1 + math.exp(-rate / 100)) ** 6)
        patch = 2 * stride
        count = math.ceil((length - patch) / stride) + 1
        x = np.concatenate((x, np.zeros(((count - 1) * stride + patch - length, channels))))
        patches = np.stack(
            [
                np.mean([self._patch_feature(x[i * stride : i * stride + patch, c]) for c in range(channels)], axis=0)
                for i in range(count)
            ]
        )
        pairs = np.concatenate((patches[0 : count - 1 : 2], patches[1::2][: count // 2]), axis=1)
        return self._whisper(pairs[: count // 2])

    def _conv(self, name: str, x: Array, stride: int) -> Array:
        """x: (n, in) -> (m, out), zeros on both sides."""
        kernel = self.weights[f"{name}.weight"]
        reach = kernel.shape[2] // 2
        padded = np.pad(x, ((reach, reach), (0, 0)))
        windows = [padded[i : i + kernel.shape[2]].T for i in range(0, len(x), stride)]
        return np.stack([(kernel * window).sum((1, 2)) for window in windows]) + self.weights[f"{name}.bias"]

    def _patch_feature(self, samples: Array) -> Array:
        """One patch of one channel -> (width,)."""
        embed = "model.time_series.encoder_embed"
        x = np.maximum(self._conv(f"{embed}.conv", samples[:, None], 1), 0)
        width = x.shape[1]
        angles = np.arange(len(x))[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
        x[:, 0::2] += np.sin(angles)
        x[:, 1::2] += np.cos(angles)
        layer = f"{embed}.transformer_encoder.layers.0"
        qkv = x @ self.weights[f"{layer}.self_attn.in_proj_weight"].T + self.weights[f"{layer}.self_attn.in_proj_bias"]
        query, key, value = qkv.reshape(len(x), 3, 8, -1).transpose(1, 0, 2, 3)
        attended = self.linear(f"{layer}.self_attn.out_proj", attention(query, key, value, causal=False))
        x = self.layer_norm(f"{layer}.norm1", x + attended, 1e-5)
        inner = np.maximum(self.linear(f"{layer}.linear1", x), 0)
        return self.layer_norm(f"{layer}.norm2", x + self.linear(f"{layer}.linear2", inner), 1e-5).mean(0)

    def _whisper(self, x: Array) -> Array:
        config, encoder = self.config["ts_config"], "model.time_series.encoder"
        x = self.linear(f"{encoder}.adapt_in", x)
        x = gelu(self._conv(f"{encoder}.conv1", x, 1))
        x = gelu(self._conv(f"{encoder}.conv2", x, 2))
        learned = self.weights[f"{encoder}.embed_positions.weight"][: len(x)]
        x[: len(learned)] += learned
        for index in range(config["encoder_layers"]):
            layer = f"{encoder}.layers.{index}"
            normed = self.layer_norm(f"{layer}.self_attn_layer_norm", x, 1e-5)
            query, key, value = (
                self.linear(f"{layer}.self_attn.{part}_proj", normed).reshape(
                    len(x), config["encoder_attention_heads"], -1
                )
                for part in "qkv"
            )
            x = x + self.linear(f"{layer}.self_attn.out_proj", attention(query, key, value, causal=True))
            inner = gelu(self.linear(f"{layer}.fc1", self.layer_norm(f"{layer}.final_layer_norm", x, 1e-5)))
            x = x + self.linear(f"{layer}.fc2", inner)
        x = self.linear(f"{encoder}.adapt_out", self.layer_norm(f"{encoder}.layer_norm", x, 1e-5))
        projector = "model.time_series.projector"
        x = self.linear(f"{projector}.linear_1", self.layer_norm(f"{projector}.layer_norm", x, 1e-5))
        return self.linear(f"{projector}.linear_2", gelu(x))
