"""items_from_processor: what a Hugging Face processor returned, cut into items with ranges."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessera_client import InvalidArgument, items_from_processor

WIDTH = 24


def outputs(**changes: Any) -> dict[str, Any]:
    """A picture of 4 tokens, a clip of 2 times 2, a picture of 1, adjacent to another of 1."""
    marks = [0, 1, 1, 1, 1, 0, 0, 2, 2, 0, 2, 2, 0, 1, 1, 0]
    return {
        "pixel_values": torch.arange(24 * WIDTH, dtype=torch.float32).reshape(24, WIDTH),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 2], [1, 2, 2]]),
        "pixel_values_videos": torch.arange(16 * WIDTH, dtype=torch.float32).reshape(16, WIDTH),
        "video_grid_thw": torch.tensor([[2, 2, 4]]),
        "mm_token_type_ids": torch.tensor([marks]),
        "video_metadata": [SimpleNamespace(frames_indices=[0, 5, 10, 15], fps=10.0)],
    } | changes


def test_items_stand_in_prompt_order_with_ranges() -> None:
    """Runs of marked tokens are shared out by what each grid needs, adjacent items without a separator too."""
    items = items_from_processor(outputs())
    assert [item.modality for item in items] == ["image", "video", "image", "image"]
    assert [item.ranges for item in items] == [((1, 4),), ((7, 2), (10, 2)), ((13, 1),), ((14, 1),)]
    assert items[1].timestamps == (0.0, 0.5, 1.0, 1.5)
    first = items[0].to_proto()
    assert (list(first.tensor.shape), first.grid_thw.h) == ([16, WIDTH], 4)
    np.testing.assert_array_equal(items[3].array.to_array(), outputs()["pixel_values"][20:])


def test_items_without_marks_have_no_ranges() -> None:
    """Then the prompt has one placeholder each, and times may be given."""
    items = items_from_processor(outputs(mm_token_type_ids=None), timestamps=[[0, 1, 2, 3]])
    assert [(item.modality, item.ranges) for item in items] == [("image", ())] * 3 + [("video", ())]
    assert items[3].timestamps == (0.0, 1.0, 2.0, 3.0)


def test_arrays_of_any_library_are_taken() -> None:
    """numpy and lists of whole numbers as well as torch; half precision stays."""
    given = outputs()
    given = given | {name: given[name].numpy() for name in ("pixel_values", "image_grid_thw", "video_grid_thw")}
    given |= {"mm_token_type_ids": given["mm_token_type_ids"].tolist()}
    given |= {"pixel_values_videos": given["pixel_values_videos"].bfloat16()}
    items = items_from_processor(given)
    assert [item.array.dtype for item in items] == ["F32", "BF16", "F32", "F32"]
    assert items_from_processor({"input_ids": [[1]]}) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"image_grid_thw": None}, "image_grid_thw"),
        ({"pixel_values": None}, "pixel_values"),
        ({"image_grid_thw": torch.tensor([[1, 4, 4]])}, "pixel_values"),
        ({"image_grid_thw": torch.tensor([[1, 4]])}, "pixel_values"),
        ({"image_grid_thw": torch.tensor([1, 4, 4])}, "image_grid_thw"),
        ({"mm_token_type_ids": [[0, 1]]}, "mm_token_type_ids"),
        ({"mm_token_type_ids": [[1] * 40]}, "mm_token_type_ids"),
        ({"mm_token_type_ids": [[3] * 4]}, "mm_token_type_ids"),
        ({"mm_token_type_ids": [[0], [0]]}, "mm_token_type_ids"),
        ({"mm_token_type_ids": [[0]]}, "mm_token_type_ids"),
        ({"video_metadata": [{"fps": 10.0}]}, "video_metadata"),
        ({"video_metadata": []}, "timestamps"),
    ],
)
def test_what_does_not_agree_is_a_typed_error(changes: dict[str, Any], field: str) -> None:
    """The output at fault is named."""
    with pytest.raises(InvalidArgument) as caught:
        items_from_processor(outputs(**changes))
    assert (caught.value.reason, caught.value.field) == ("PROCESSOR_OUTPUT", field)
