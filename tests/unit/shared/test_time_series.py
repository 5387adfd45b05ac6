"""Tests of tessera.time_series: strides, patches and tokens of a series."""

import math

import pytest

from tessera.errors import InvalidArgument, ResourceExhausted
from tessera.time_series import (
    MAX_CHANNELS,
    MAX_LENGTH,
    check_series,
    effective_rate,
    num_series_patches,
    num_series_tokens,
    series_patch,
    series_stride,
    used_length,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("length", "rate", "stride", "tokens"),
    [
        (6000, 100, 24, 62),
        (9000, 100, 24, 94),
        (16_000, 16_000, 160, 25),
        (1000, 1, 2, 125),
    ],
)
def test_worked_examples(length: int, rate: float, stride: int, tokens: int) -> None:
    """The worked examples of the facts hold."""
    assert (series_stride(length, rate), series_patch(length, rate)) == (stride, 2 * stride)
    assert num_series_tokens(length, rate) == tokens


@pytest.mark.parametrize("rate", [0.0, -1.0, -1e300])
def test_unknown_rate(rate: float) -> None:
    """A rate of 0 or less is unknown: a quarter of the samples, at least 1, takes its place."""
    assert effective_rate(6000, rate) == 1500
    assert effective_rate(3, rate) == 1
    assert num_series_tokens(6000, rate) == num_series_tokens(6000, 1500)


@pytest.mark.parametrize(("rate", "stride"), [(1e-300, 2), (0.001, 2), (1e6, 160), (1e300, 160)])
def test_stride_bounds(rate: float, stride: int) -> None:
    """The stride never leaves [2, 160]."""
    assert series_stride(100_000, rate) == stride


def test_stride_grows_with_the_rate() -> None:
    """A faster series has no shorter stride."""
    strides = [series_stride(1, rate) for rate in range(1, 2000)]
    assert strides == sorted(strides)


@pytest.mark.parametrize("rate", [1.0, 100.0, 44_100.0])
def test_shortest(rate: float) -> None:
    """A series is longer than one patch; the first legal one owns one token."""
    patch = series_patch(0, rate)
    with pytest.raises(InvalidArgument, match=f"more than {patch}") as error:
        num_series_tokens(patch, rate)
    assert (error.value.reason, error.value.field) == ("SERIES_TOO_SHORT", "tensor.shape")
    assert (num_series_patches(patch + 1, rate), num_series_tokens(patch + 1, rate)) == (2, 1)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4])
def test_shortest_of_unknown_rate(length: int) -> None:
    """Four samples of unknown rate are too short, five are not."""
    with pytest.raises(InvalidArgument):
        num_series_tokens(length, 0)
    assert num_series_tokens(5, 0) == 1


@pytest.mark.parametrize("rate", [0.0, 1.0, 16_000.0])
def test_cut(rate: float) -> None:
    """Samples past the cut change nothing, the unknown rate included."""
    assert used_length(MAX_LENGTH + 1) == MAX_LENGTH
    assert num_series_tokens(10 * MAX_LENGTH, rate) == num_series_tokens(MAX_LENGTH, rate)


@pytest.mark.parametrize("rate", [NAN, INF, -INF])
def test_rate_not_finite(rate: float) -> None:
    """A rate that is not finite is refused."""
    with pytest.raises(InvalidArgument) as error:
        num_series_tokens(6000, rate)
    assert (error.value.reason, error.value.field) == ("SAMPLING_RATE", "sampling_rate_hz")


@pytest.mark.parametrize("length", range(49, 500, 7))
def test_tokens_follow_the_encoder(length: int) -> None:
    """The count is what the encoder leaves: whole patches to the end, an odd last one dropped, pairs, then halves."""
    rate, stride, patch = 100, 24, 48
    starts = [start for start in range(0, length, stride) if start == 0 or start + stride < length]
    assert starts[-1] + patch >= length
    pairs = len(starts) // 2
    assert num_series_tokens(length, rate) == len(range(0, pairs, 2))


@pytest.mark.parametrize("length", [MAX_LENGTH, 10 * MAX_LENGTH])
def test_what_the_encoder_is_asked_for_is_bounded(length: int) -> None:
    """Eight channels of full length are taken, however long they go on; nine are not."""
    assert check_series(length, 8, 0) == num_series_tokens(length, 0)
    with pytest.raises(ResourceExhausted) as error:
        check_series(length, 9, 0)
    assert (error.value.reason, error.value.retry_after_s) == ("SERIES_TOO_LARGE", None)


@pytest.mark.parametrize("channels", [0, MAX_CHANNELS + 1])
def test_channels(channels: int) -> None:
    """A series has 1 to 1024 channels; one that looks transposed is told so."""
    with pytest.raises(InvalidArgument, match="1 to 1024 channels") as error:
        check_series(2, channels, 0)
    assert ("transposed" in error.value.message) == (channels > 2)
