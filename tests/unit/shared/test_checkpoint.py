"""Checkpoint directories: the fingerprint, and finding one by name.

Next: tests/unit/worker/models/test_loader.py
"""

from pathlib import Path

import pytest

from tessera.checkpoint import FINGERPRINTED_FILES, fingerprint, resolve_model_dir
from tessera.errors import NotFound


def write(path: Path, **files: str) -> Path:
    """Write small files, `config` meaning config.json."""
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_equal_files_have_equal_fingerprints(tmp_path: Path) -> None:
    """The fingerprint depends on contents alone, not on the directory, weights or notes."""
    a, b = write(tmp_path / "a", config="{}"), write(tmp_path / "b", config="{}")
    (b / "model.safetensors").write_bytes(b"weights")
    (b / "README.md").write_text("notes")
    assert fingerprint(a) == fingerprint(b)


@pytest.mark.parametrize("name", FINGERPRINTED_FILES)
def test_each_file_counts(tmp_path: Path, name: str) -> None:
    """A changed, an emptied and a missing file all give another fingerprint."""
    write(tmp_path)
    seen = {fingerprint(tmp_path)}
    for text in ("", "{}", "{ }"):
        (tmp_path / name).write_text(text)
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def test_contents_do_not_run_into_each_other(tmp_path: Path) -> None:
    """The same bytes in another file are another checkpoint."""
    a, b = write(tmp_path / "a", config="{}"), write(tmp_path / "b", tokenizer="{}")
    assert fingerprint(a) != fingerprint(b)


def test_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    """A local directory resolves to itself, without the network."""
    assert resolve_model_dir(str(write(tmp_path, config="{}"))) == tmp_path


def test_a_directory_without_a_config_is_not_a_model(tmp_path: Path) -> None:
    """The error names what is missing."""
    with pytest.raises(NotFound, match=r"config\.json"):
        resolve_model_dir(tmp_path)


def test_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is neither a directory nor on the hub is NOT_FOUND."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="nobody/nothing"):
        resolve_model_dir("nobody/nothing")


def test_a_name_that_is_no_name() -> None:
    """A path that does not exist and cannot be a hub name is NOT_FOUND as well."""
    with pytest.raises(NotFound, match="/no/such/dir"):
        resolve_model_dir("/no/such/dir")
