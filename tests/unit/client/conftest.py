"""A fake server for each test, and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tessera_client import Client
from tests.fakes.inference import FakeInference, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def service(server: FakeServer) -> FakeInference:
    return server.service


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.address, timeout=10) as client:
        yield client


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small PNG."""
    from PIL import Image

    path = tmp_path / "cat.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return path
