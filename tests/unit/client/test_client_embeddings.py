"""Embeddings from files: npy, and safetensors as its own library writes it; and nothing that could run code."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from tessera.items import item_from_proto
from tessera_client import InvalidArgument, Item, load_embeddings, save_embeddings
from tessera_client.embeddings import MAX_HEADER_BYTES

TOKENS = np.arange(32, dtype=np.float32).reshape(4, 8)
DEEPSTACK = np.ones((3, 4, 8), np.float32)


def test_safetensors_bring_everything(tmp_path: Path) -> None:
    """Grid, times and side tensors by their names, whether as tensors or in the metadata; bfloat16 bit by bit."""
    path = tmp_path / "a.safetensors"
    tensors = {
        "embeddings": torch.from_numpy(TOKENS).bfloat16(),
        "deepstack": torch.from_numpy(DEEPSTACK).bfloat16(),
        "grid_thw": torch.tensor([2, 2, 4]),
        "timestamps": torch.tensor([0.0, 0.5, 1.0, 2.5], dtype=torch.float64),
    }
    save_file(tensors, path, metadata={"modality": "video"})
    item = load_embeddings(path)
    assert (item.modality, item.grid_thw, item.timestamps) == ("video", (2, 2, 4), (0.0, 0.5, 1.0, 2.5))
    message = item_from_proto(item.to_proto())
    assert (message.dtype, message.array.shape if message.array is not None else None) == ("BF16", (4, 8))
    bits = tensors["embeddings"].view(torch.uint16).numpy()
    np.testing.assert_array_equal(message.array, bits)
    assert message.side_arrays["deepstack"].array.shape == (3, 4, 8)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: str) -> None:
    """Our files are ordinary safetensors, and give the same item again."""
    path = tmp_path / "a.safetensors"
    item = Item(
        "image", "embeddings", TOKENS.astype(dtype), grid_thw=(1, 4, 4), side_arrays={"deepstack": DEEPSTACK[:, :, ::2]}
    )
    save_embeddings(path, item)
    np.testing.assert_array_equal(load_file(path)["deepstack"], DEEPSTACK[:, :, ::2])
    again = load_embeddings(path)
    assert again.to_proto() == item.to_proto()


def test_an_npy_file_needs_its_grid(tmp_path: Path) -> None:
    """It holds one array; the caller says the rest, side arrays too."""
    path = tmp_path / "a.npy"
    np.save(path, TOKENS)
    item = load_embeddings(path, grid_thw=(1, 4, 4), side_arrays={"deepstack": DEEPSTACK})
    assert (item.modality, item.payload_kind, item.grid_thw) == ("image", "embeddings", (1, 4, 4))
    assert item.to_proto().side_tensors["deepstack"].shape == [3, 4, 8]
    assert load_embeddings(path, modality="time_series").grid_thw is None
    with pytest.raises(InvalidArgument, match="grid_thw") as caught:
        load_embeddings(path)
    assert (caught.value.reason, caught.value.field) == ("EMBEDDINGS_FILE", "grid_thw")


def npy(array: np.ndarray) -> bytes:
    """An npy file, pickled where numpy pickles."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def safetensors(header: bytes, body: bytes = b"") -> bytes:
    """A file with this header."""
    return len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        pickle.dumps(TOKENS),
        npy(np.array([{}], dtype=object)),
        npy(TOKENS)[:-4],
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(MAX_HEADER_BYTES + 9),
        safetensors(b"not json"),
        safetensors(b"[]"),
        safetensors(b'{"embeddings": {"dtype": "F32"}}'),
        safetensors(b'{"embeddings": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}', bytes(8)),
        safetensors(b'{"embeddings": {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]}}', bytes(16)),
        safetensors(b'{"embeddings": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}}', bytes(16)),
        safetensors(b'{"embeddings": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}', bytes(4)),
        safetensors(b"{}"),
        safetensors(b'{"__metadata__": {"grid_thw": "no"}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}')
        + b"x",
    ],
)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    """With one reason; pickles are never opened."""
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(InvalidArgument) as caught:
        load_embeddings(path, grid_thw=(1, 4, 4))
    assert caught.value.reason == "EMBEDDINGS_FILE"
