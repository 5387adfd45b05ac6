"""Which resize runs, and that the two agree."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media.resize import SEARCH, NativeResizer, PillowResizer, load_resizer
from tests.unit.gateway.media.media_fixtures import picture

NATIVE = load_resizer()
built = pytest.mark.skipif(NATIVE.name != "native", reason="libtessera_resize.so is not built: make kernels")


def test_pillow_runs_where_the_library_is_not_built(tmp_path: Path) -> None:
    """An empty search list is no error, and the name says what runs."""
    assert load_resizer([tmp_path]).name == "pillow"


@built
def test_a_library_of_another_interface_is_refused() -> None:
    """The loader checks the interface's number before the first call."""
    path = next(directory for directory in SEARCH if (directory / "libtessera_resize.so").is_file())
    assert NativeResizer(path / "libtessera_resize.so").name == "native"
    with pytest.raises(OSError, match="cannot open"):
        NativeResizer(path / "absent.so")


@built
@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 4),
    frames=st.integers(1, 3),
    noise=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_vector_and_scalar_loops_give_the_same_bytes(
    sizes: tuple[int, int, int, int], frames: int, noise: bool, seed: int
) -> None:
    """Every variant is the reference, at every size, whatever lies behind the last row."""
    height, width, out_height, out_width = sizes
    rng = np.random.default_rng(seed)
    source = (
        rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        if noise
        else np.stack([picture(height, width, seed + frame) for frame in range(frames)])
    )
    path = next(directory for directory in SEARCH if (directory / "libtessera_resize.so").is_file())
    outputs = []
    for variant in (0, 1):
        out = np.full((frames, out_height, out_width, 3), 77, np.uint8)
        NativeResizer(path / "libtessera_resize.so", variant)(source, out)
        outputs.append(out)
    np.testing.assert_array_equal(outputs[0], outputs[1])


@built
@pytest.mark.parametrize("target", [(64, 96), (200, 180), (96, 480), (128, 128)])
def test_pillow_is_within_two_of_the_library(target: tuple[int, int]) -> None:
    """The fallback differs by at most 2 of 255."""
    source = np.stack([picture(128, 192), picture(128, 192, 1)])
    ours, theirs = (np.empty((2, *target, 3), np.uint8) for _ in range(2))
    NATIVE(source, ours)
    PillowResizer()(source, theirs)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("resizer", [NATIVE, PillowResizer()], ids=lambda resizer: resizer.name)
def test_the_same_size_is_a_copy(resizer: NativeResizer | PillowResizer) -> None:
    """No filter touches a picture that fits."""
    source = picture(40, 30)[None]
    out = np.empty_like(source)
    resizer(source, out)
    np.testing.assert_array_equal(source, out)
