"""The video backend as a flag of the gateway: which one runs, which are told, and a start that fails in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.media import loaders
from gateway.settings import GatewaySettings
from tessera.settings import load_settings
from tessera.v1 import inference_service_pb2 as pb
from tests.e2e.harness import ROOT, Flags, Pairs
from tests.parity.cases import CLIP, CLIP_B, Case, chat_request, user

CLIPS = Case("clips", (user(CLIP, CLIP_B, "Which came first?"),))


def test_the_named_backend_runs_and_is_told_first(pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """GetModel lists what is installed, the one in use first; frames and times are those of the default."""
    prepared = {}
    for name, flags in (("opencv", ()), ("pyav", ("--video-loader", "pyav"))):
        pair = pairs.get(Flags(tiny("5.x"), gateway=flags))
        told = list(pair.model().video_loaders)
        assert told[0] == name
        assert {"opencv", "pyav"} <= set(told) <= set(loaders.ORDER)
        prepared[name] = pair.stub.Prepare(pb.PrepareRequest(chat=chat_request(CLIPS)))
    theirs, ours = prepared.values()
    assert list(ours.token_ids) == list(theirs.token_ids)
    for one, other in zip(ours.media, theirs.media, strict=True):
        assert list(one.sampling.frame_indices) == list(other.sampling.frame_indices)
        assert list(one.sampling.timestamps) == list(other.sampling.timestamps)


def missing() -> str:
    """A backend that cannot be used here."""
    return next((name for name in loaders.ORDER if not loaders.BACKENDS[name].is_installed), "decord")


def test_a_missing_backend_fails_the_start(tiny: Callable[[str], Path]) -> None:
    """In one line of the log that says how to install it, before the gateway listens; by flag and by environment."""
    name = missing()
    arguments = [sys.executable, "-m", "gateway", "--model", str(tiny("5.x")), "--port", "0", "--pool-processes", "1"]
    environ = {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}
    for flags, variables in ((["--video-loader", name], {}), ([], {"TESSERA_VIDEO_LOADER": name})):
        command = [*arguments, *flags]
        done = subprocess.run(command, env=environ | variables, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        lines = [json.loads(text) for text in done.stderr.splitlines()]
        (line,) = [line for line in lines if line["level"] == "error"]
        assert line["event"] == "gateway_failed"
        assert not [line for line in lines if line["event"] == "gateway_started"]
        assert repr(name) in line["reason"]
        assert "pip install" in line["reason"]


@pytest.mark.parametrize("name", loaders.NAMES)
def test_every_name_is_a_setting(name: str) -> None:
    """By flag and by TESSERA_VIDEO_LOADER; automatic unless said."""
    by_flag = load_settings(GatewaySettings, ["--model", "m", "--video-loader", name], {})
    by_variable = load_settings(GatewaySettings, ["--model", "m"], {"TESSERA_VIDEO_LOADER": name})
    assert by_flag.video_loader == by_variable.video_loader == name
    assert load_settings(GatewaySettings, ["--model", "m"], {}).video_loader == "auto"
