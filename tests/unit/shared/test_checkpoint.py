"""Tests of protos/tessera/checkpoint.py."""

from pathlib import Path

import pytest

from tessera.checkpoint import FINGERPRINTED_FILES, fingerprint, resolve_model_dir
from tessera.errors import NotFound


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with the files of a checkpoint, contents made up."""
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text(f"{{}} {name}")
    return tmp_path


def test_equal_files_have_equal_fingerprints(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The fingerprint is of the contents: where the directory lies does not count."""
    other = tmp_path_factory.mktemp("other")
    for file in checkpoint.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert fingerprint(checkpoint) == fingerprint(other)


@pytest.mark.parametrize("name", FINGERPRINTED_FILES)
def test_each_file_counts(checkpoint: Path, name: str) -> None:
    """A change of any file that decides prompts, grids or positions changes the fingerprint."""
    before = fingerprint(checkpoint)
    (checkpoint / name).write_text("changed")
    assert fingerprint(checkpoint) != before


def test_an_empty_file_is_not_an_absent_one(checkpoint: Path) -> None:
    """A file that is there and empty differs from one that is not there."""
    before = fingerprint(checkpoint)
    (checkpoint / "generation_config.json").write_text("")
    assert fingerprint(checkpoint) != before


def test_contents_cannot_move_between_files(checkpoint: Path) -> None:
    """Exchanging two files' contents gives another fingerprint."""
    before = fingerprint(checkpoint)
    one, two = checkpoint / "config.json", checkpoint / "tokenizer.json"
    first, second = one.read_text(), two.read_text()
    one.write_text(second)
    two.write_text(first)
    assert fingerprint(checkpoint) != before


def test_weights_and_strange_files_do_not_count(checkpoint: Path) -> None:
    """Weights take too long to read, and other files decide nothing."""
    before = fingerprint(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "README.md").write_text("words")
    assert fingerprint(checkpoint) == before


def test_a_directory_is_taken_as_it_is(checkpoint: Path) -> None:
    """A local directory is never looked up on the hub."""
    assert resolve_model_dir(checkpoint) == checkpoint
    assert resolve_model_dir(str(checkpoint)) == checkpoint


def test_a_directory_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    """An empty directory is NOT_FOUND, with a text that says what is missing."""
    with pytest.raises(NotFound, match=r"config\.json"):
        resolve_model_dir(tmp_path)
