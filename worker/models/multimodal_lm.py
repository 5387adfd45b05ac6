"""A decoder and its encoders as one model; a family adds its config, its layers, its towers and its positions.

Next: worker/models/qwen3_vl.py
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tessera.errors import FailedPrecondition, Unimplemented
from worker.layers.kv_cache import KVCache
from worker.models.base import CausalLM, EncoderInput, EncoderOutput, ForwardBatch, ItemLayout, ItemSize, ModelInfo
from worker.models.checkpoint import CheckpointError
from worker.models.decoder import Decoder
from worker.models.encoder import ItemEncoder

VISUAL = ("image", "video")


class MultimodalLM(CausalLM):
    """See `CausalLM`.

    Args:
        info: what the checkpoint says of itself; which modalities are served is filled in here.
        decoder: the language model.
        encoders: none in a text-only checkpoint; no vision encoder where that is disabled.
        dtype: of weights and activations.
        device: where it runs.
        vision_disabled: the checkpoint has a vision encoder and it was left unread.

    Raises:
        CheckpointError: an encoder's embeddings do not fit the language model.
    """

    def __init__(
        self,
        info: ModelInfo,
        decoder: Decoder,
        encoders: Sequence[ItemEncoder],
        dtype: torch.dtype,
        device: torch.device,
        *,
        vision_disabled: bool = False,
    ) -> None:
        self.decoder = decoder
        self.encoders = tuple(encoders)
        modalities = tuple(modality for encoder in encoders for modality in encoder.modalities)
        self.info = replace(info, modalities=modalities, vision_disabled=vision_disabled)
        self.dtype, self.device = dtype, device
        self.num_layers = decoder.num_attention_layers
        self.num_kv_heads = decoder.shape.num_kv_heads
        self.head_dim = decoder.shape.head_dim
        self.state_shape = decoder.shape.state
        self._encoder_of = {modality: encoder for encoder in self.encoders for modality in encoder.modalities}
        for encoder in self.encoders:
            if encoder.hidden_size != info.hidden_size:
                raise CheckpointError(
                    f"config.json: the encoder of {', '.join(encoder.modalities)} gives embeddings of width "
                    f"{encoder.hidden_size}; the language model takes {info.hidden_size}"
                )

    @torch.inference_mode()
    def encode(self, inputs: Sequence[EncoderInput]) -> list[EncoderOutput]:
        """Turn items into embeddings, those of one encoder in one batch; see `CausalLM.encode`."""
        outputs: list[EncoderOutput | None] = [None] * len(inputs)
        chosen = [self._encoder(item.modality) for item in inputs]
        for encoder in self.encoders:
            places = [index for index, other in enumerate(chosen) if other is encoder]
            for index, output in zip(places, encoder([inputs[i] for i in places]) if places else [], strict=True):
                outputs[index] = self._complete(output)
        return [output for output in outputs if output is not None]

    def _complete(self, output: EncoderOutput) -> EncoderOutput:
        """Return an output with features for every DeepStack layer of the model: none of its own means zeros.

        The rows of a step's items form one tensor, so all of them have as many layers.
        """
        layers = self.info.num_deepstack_layers
        if not layers or output.deepstack is not None:
            return output
        return EncoderOutput(output.embeddings, output.embeddings.new_zeros(layers, *output.embeddings.shape))

    def _encoder(self, modality: str) -> ItemEncoder:
        encoder = self._encoder_of.get(modality)
        if encoder is not None:
            return encoder
        if self.info.vision_disabled and modality in VISUAL:
            raise FailedPrecondition("This worker serves without its vision encoder.", reason="VISION_DISABLED")
        raise Unimplemented(f"The model does not take {modality}.", reason="MODALITY_UNSUPPORTED", field="modality")

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Run one step; see `CausalLM.forward`."""
        return self.decoder.forward(batch, kv_cache)

    @abstractmethod
    def prompt_positions(self, prompt_len: int, items: Sequence[ItemLayout]) -> tuple[np.ndarray, int]:
        """Return the positions of a whole prompt; see `CausalLM.prompt_positions`."""

    def item_tokens(self, size: ItemSize) -> int:
        """Return how many placeholder tokens an item of this size owns."""
        return self._encoder(size.modality).item_tokens(size)

    # Sizes, for the report and the profile at start.

    @property
    def head_dims(self) -> tuple[int, ...]:
        """Head sizes of language model and encoders."""
        return (self.head_dim, *(head_dim for encoder in self.encoders for head_dim in encoder.head_dims))

    def worst_items(self, max_tokens: int) -> list[ItemSize]:
        """Return the worst legal item of each served modality."""
        return [size for encoder in self.encoders for size in encoder.worst_items(max_tokens)]

    def dummy_input(self, size: ItemSize) -> EncoderInput:
        """Return an item of this size, black or silent."""
        return self._encoder(size.modality).dummy_input(size)

    def encoder_workspace_bytes(self, size: ItemSize) -> int:
        """Return an upper estimate of the transient memory of `encode` for one item."""
        return self._encoder(size.modality).workspace_bytes(size)

    def forward_workspace_bytes(self, num_tokens: int, num_logits: int) -> int:
        """Return an upper estimate of the transient memory of `forward`."""
        return self.decoder.workspace_bytes(num_tokens, num_logits)

    @property
    def encoder_token_bytes(self) -> int:
        """Bytes of one token of an `EncoderOutput`, side features counted."""
        return (1 + self.info.num_deepstack_layers) * self.hidden_size * self.dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are kept."""
        return self.decoder.size_bytes + sum(encoder.weight_bytes for encoder in self.encoders)
