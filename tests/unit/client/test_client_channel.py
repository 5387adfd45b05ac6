"""Addresses, channels, and what the package imports."""

import os
import subprocess
import sys

import pytest

from tessera_client.channel import CHANNEL_OPTIONS, ChannelPool, normalize_address
from tessera_client.decoding import to_json
from tessera_client.results import Usage


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, "localhost:50051"),
        ("example.org", "example.org:50051"),
        ("http://example.org:80/", "example.org:80"),
        ("grpc://a:1", "a:1"),
        (":7000", "localhost:7000"),
        ("[::1]:7", "[::1]:7"),
        ("[::1]", "[::1]:50051"),
        ("::1", "[::1]:50051"),
        ("unix:/tmp/s", "unix:/tmp/s"),
    ],
)
def test_addresses_are_completed(given: str | None, address: str) -> None:
    """A scheme is taken off, a missing host or port is filled in."""
    assert normalize_address(given) == address


@pytest.mark.parametrize("given", ["a:b", "a:0", "a:70000"])
def test_a_bad_port_is_told(given: str) -> None:
    """A port that is none is an error here, not a time-out later."""
    with pytest.raises(ValueError, match="host:port"):
        normalize_address(given)


class FakeChannel:
    """Stands for a grpc channel: hands out callables."""

    def unary_unary(self, *_args, **_kwargs):
        return object()

    unary_stream = stream_unary = stream_stream = unary_unary


def test_a_full_channel_is_joined_by_another() -> None:
    """More calls than a server takes on one connection go over a second, and the first is used again after."""
    pool = ChannelPool(FakeChannel, limit=2)
    with pool.lane() as first, pool.lane() as second:
        assert first is second
        with pool.lane() as third:
            assert third is not first
    assert len(pool.lanes) == 2
    with pool.lane() as again:
        assert again is first
    assert len(pool.drain()) == 2
    with pytest.raises(RuntimeError, match="closed"), pool.lane():
        pass


def test_keepalive_is_set_with_the_ping_timeout() -> None:
    """A frozen peer is found in seconds, and a silent stream is kept."""
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.http2.ping_timeout_ms"] == 5000
    assert options["grpc.keepalive_time_ms"] == 10000
    assert options["grpc.http2.max_pings_without_data"] == 0


def test_results_are_plain_json() -> None:
    """Dataclasses become objects, bytes hexadecimal digits, tuples lists."""
    assert to_json({"u": Usage(prompt_tokens=1), "b": b"\x01", 3: (1, None)})["b"] == "01"
    assert to_json(Usage(prompt_tokens=1))["prompt_tokens"] == 1


def test_every_public_name_is_there() -> None:
    """What `__all__` promises can be imported, and what is not there is an AttributeError."""
    import tessera_client

    assert all(getattr(tessera_client, name) is not None for name in tessera_client.__all__)
    assert set(tessera_client.__all__) <= set(dir(tessera_client))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = tessera_client.no_such_name


@pytest.mark.slow
def test_importing_the_client_brings_no_heavy_package() -> None:
    """torch, numpy, Pillow, rich and the servers stay out until they are needed."""
    heavy = "{'torch','numpy','PIL','rich','gateway','worker','tessera_kernels','transformers'}"
    code = "import sys; from tessera_client import *; import tessera_client.cli.program\n"
    code += f"print(sorted({heavy} & set(sys.modules)))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout.strip() == "[]"
