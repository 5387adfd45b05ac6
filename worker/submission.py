"""From a Submit message to a SequenceGroup, with every field checked.

The gateway has checked the same; a worker must not trust that, since a wrong range or id would reach its kernels.

Next: worker/engine/sequence.py
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tessera.errors import FailedPrecondition, InvalidArgument, ServeError, Unimplemented
from tessera.items import ItemGeometry, MultimodalItem, check_grid, check_no_grid, item_from_proto
from tessera.modality import VISUAL, Modality
from tessera.v1 import types_pb2 as types
from tessera.v1 import worker_service_pb2 as pb
from worker.engine.sampling_params import SamplingParams
from worker.engine.sequence import SequenceGroup, SequenceItem, TokenSpan
from worker.status import geometry_of

if TYPE_CHECKING:
    from worker.models.base import ModelInfo

MAX_CHOICES = 64
MAX_SALT_BYTES = 1024
MAX_STOP_TOKENS = 64
MAX_BIASES = 1024


@dataclass(frozen=True)
class _Bound:
    low: float
    high: float
    open_low: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high


_BOUNDS = {
    "max_tokens": _Bound(1, 2**31 - 1),
    "temperature": _Bound(0, 100),
    "top_p": _Bound(0, 1, open_low=True),
    "top_k": _Bound(-1, 2**31 - 1),
    "min_p": _Bound(0, 1),
    "presence_penalty": _Bound(-2, 2),
    "frequency_penalty": _Bound(-2, 2),
    "repetition_penalty": _Bound(0, 100, open_low=True),
    "n": _Bound(1, MAX_CHOICES),
    "top_logprobs": _Bound(0, 20),
}


class SubmitReader:
    """Reads submissions for one model.

    Args:
        info: of the model.
        max_model_len: where max_tokens is unset, it is what this leaves.
    """

    def __init__(self, info: "ModelInfo", max_model_len: int) -> None:
        self.info = info
        self._geometry: ItemGeometry = geometry_of(info)
        self._max_model_len = max_model_len
        self._visual_tokens = [token for token in (info.image_token_id, info.video_token_id) if token is not None]
        self._placeholders = {
            Modality.IMAGE: info.image_token_id,
            Modality.VIDEO: info.video_token_id,
            Modality.TIME_SERIES: info.time_series_token_id,
        }

    def read(self, submit: pb.Submit, owner: int, now_s: float) -> SequenceGroup:
        """Return the request of a message.

        Args:
            submit: the message.
            owner: the gateway's stream.
            now_s: on the engine's clock.

        Raises:
            ServeError: a field is wrong; with its path inside Submit.
        """
        if not submit.request_id:
            raise _invalid("A request has an id.", "FIELD_REQUIRED", "request_id")
        if len(submit.cache_salt) > MAX_SALT_BYTES:
            raise _invalid(f"A salt has at most {MAX_SALT_BYTES} bytes.", "SALT_SIZE", "cache_salt")
        if submit.timeout_ms < 0:
            raise _invalid("A timeout is not negative.", "TIMEOUT_INVALID", "timeout_ms")
        prompt = np.array(submit.prompt_token_ids, np.int64)
        if not len(prompt):
            raise _invalid("A prompt has at least one token.", "FIELD_REQUIRED", "prompt_token_ids")
        self._check_ids(prompt, "prompt_token_ids")
        params = self._params(submit.sampling, len(prompt))
        choices = _choices(submit, params.n)
        items = self._items(submit, prompt)
        self._check_vision(prompt)
        return SequenceGroup(
            request_id=submit.request_id,
            prompt_ids=tuple(prompt.tolist()),
            params=params,
            items=items,
            owner=owner,
            epoch=submit.epoch,
            priority=submit.priority,
            deadline_s=now_s + submit.timeout_ms / 1000 if submit.timeout_ms else None,
            cache_salt=submit.cache_salt,
            choices=choices,
            emitted=self._emitted(submit, choices, params.n),
        )

    def check_modality(self, modality: Modality) -> None:
        """Refuse what the model does not take.

        Raises:
            FailedPrecondition: its vision encoder was left out.
            Unimplemented: it has none for this.
        """
        if modality in self.info.modalities:
            return
        if self.info.vision_disabled and modality in VISUAL:
            raise vision_disabled("modality")
        raise Unimplemented(
            f"This model does not take items of modality {modality}.", reason="MODALITY_UNSUPPORTED", field="modality"
        )

    def _check_vision(self, prompt: np.ndarray) -> None:
        """Refuse placeholders that no encoder is there to fill.

        Raises:
            FailedPrecondition: the vision encoder was left out; at the first placeholder.
        """
        if self.info.vision_disabled:
            found = np.flatnonzero(np.isin(prompt, self._visual_tokens))
            if len(found):
                raise vision_disabled(f"prompt_token_ids[{found[0]}]")

    def _items(self, submit: pb.Submit, prompt: np.ndarray) -> tuple[SequenceItem, ...]:
        items = []
        end, last_first = 0, -1
        spans: list[tuple[int, int, str]] = []
        for index, message in enumerate(submit.items):
            path = f"items[{index}]"
            if message.WhichOneof("payload") != "content_hash":
                raise _invalid("A submission names its items by hash.", "HASH_REQUIRED", f"{path}.content_hash")
            try:
                item = item_from_proto(message)
                self.check_modality(item.modality)
                grid = None
                if item.modality in VISUAL:
                    grid = check_grid(item.modality, item.grid_thw, self._geometry)
                else:
                    check_no_grid(item)
                self._check_ranges(item, grid, prompt)
            except ServeError as error:
                raise error.under(path) from None
            if item.ranges[0].offset <= last_first:
                raise _invalid("Items are ordered by their first offset.", "RANGE_ORDER", f"{path}.ranges[0]")
            last_first = item.ranges[0].offset
            spans += [(r.offset, r.end, f"{path}.ranges[{n}]") for n, r in enumerate(item.ranges)]
            ranges = tuple(TokenSpan(r.offset, r.length) for r in item.ranges)
            items.append(SequenceItem(str(item.modality), item.content_hash, ranges, grid))
        for offset, last, path in sorted(spans):
            if offset < end:
                raise _invalid("Ranges of different items overlap.", "RANGE_ORDER", path)
            end = last
        return tuple(items)

    def _check_ranges(self, item: MultimodalItem, grid: tuple[int, int, int] | None, prompt: np.ndarray) -> None:
        if not item.ranges:
            raise _invalid("An item has at least one range.", "RANGE_COUNT", "ranges")
        token_id, end = self._placeholders[item.modality], 0
        for number, span in enumerate(item.ranges):
            where, field = f"Range [{span.offset}, {span.end})", f"ranges[{number}]"
            if span.offset < 0 or span.length < 1 or span.end > len(prompt):
                message = f"{where} does not lie in the prompt of {len(prompt)} tokens."
                raise _invalid(message, "RANGE_BOUNDS", field)
            if span.offset < end:
                raise _invalid(f"{where} begins before the one before it ends.", "RANGE_ORDER", field)
            if (prompt[span.offset : span.end] != token_id).any():
                raise _invalid(f"{where} covers tokens other than the placeholder {token_id}.", "RANGE_TOKENS", field)
            end = span.end
        if grid is None:
            # How many tokens a series owns shows when its bytes are here (ModelRunner.encode).
            if len(item.ranges) != 1:
                raise _invalid(f"A series has one range, not {len(item.ranges)}.", "RANGE_COUNT", "ranges")
            return
        expected = self._geometry.num_tokens(grid)
        if item.num_tokens != expected:
            message = f"The ranges cover {item.num_tokens} tokens; the grid {list(grid)} gives {expected}."
            raise _invalid(message, "RANGE_LENGTH", "ranges")

    def _params(self, sampling: types.SamplingParams, prompt_len: int) -> SamplingParams:
        values = {}
        for name, bound in _BOUNDS.items():
            if sampling.HasField(name):
                values[name] = getattr(sampling, name)
                if not bound.holds(values[name]):
                    raise _invalid(f"{name} is out of range: {values[name]:g}.", "SAMPLING_PARAMETER", _under(name))
        if len(sampling.stop_token_ids) > MAX_STOP_TOKENS:
            raise _invalid(f"At most {MAX_STOP_TOKENS} stop tokens.", "SAMPLING_PARAMETER", _under("stop_token_ids"))
        if len(sampling.logit_bias) > MAX_BIASES:
            raise _invalid(f"At most {MAX_BIASES} biases.", "SAMPLING_PARAMETER", _under("logit_bias"))
        self._check_ids(np.array(sampling.stop_token_ids, np.int64), _under("stop_token_ids"))
        biases = tuple(sampling.logit_bias.items())
        self._check_ids(np.array([token for token, _ in biases], np.int64), _under("logit_bias"))
        if not all(-100 <= bias <= 100 for _, bias in biases):
            raise _invalid("A bias is in [-100, 100].", "SAMPLING_PARAMETER", _under("logit_bias"))
        values.setdefault("max_tokens", max(self._max_model_len - prompt_len, 1))
        values["top_k"] = max(values.get("top_k", 0), 0)
        return SamplingParams(
            **values,
            seed=sampling.seed,
            stop_token_ids=frozenset(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            logit_bias=biases,
        )

    def _emitted(self, submit: pb.Submit, choices: tuple[int, ...], n: int) -> tuple[tuple[int, ...], ...]:
        if len(submit.emitted) > n:
            raise _invalid(f"{len(submit.emitted)} lists of tokens for {n} choices.", "EMITTED_COUNT", "emitted")
        for index, tokens in enumerate(submit.emitted):
            self._check_ids(np.array(tokens.ids, np.int64), f"emitted[{index}].ids")
        if not submit.emitted:
            return ()
        return tuple(tuple(submit.emitted[c].ids) if c < len(submit.emitted) else () for c in choices)

    def _check_ids(self, ids: np.ndarray, path: str) -> None:
        wrong = np.flatnonzero((ids < 0) | (ids >= self.info.vocab_size))
        if len(wrong):
            index = int(wrong[0])
            raise _invalid(
                f"Token id {ids[index]} is not in the vocabulary of {self.info.vocab_size}.",
                "TOKEN_OUT_OF_VOCABULARY",
                f"{path}[{index}]",
            )


def vision_disabled(field: str) -> FailedPrecondition:
    """Return the refusal of a picture or clip where the vision encoder was left out."""
    return FailedPrecondition("The vision encoder is disabled on this worker.", reason="VISION_DISABLED", field=field)


def _choices(submit: pb.Submit, n: int) -> tuple[int, ...]:
    choices = tuple(submit.choices) or tuple(range(n))
    if len(set(choices)) != len(choices) or not all(0 <= choice < n for choice in choices):
        raise _invalid(f"Choices are different numbers in [0, {n}).", "CHOICES_INVALID", "choices")
    return choices


def _under(name: str) -> str:
    return f"sampling.{name}"


def _invalid(message: str, reason: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, reason=reason, field=field)
