"""A server without its vision encoder: media are refused by name, text is the same, and the weights are not there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import ROOT, Flags, Pair, Pairs
from tests.e2e.status import canary_tokens, outcome
from tests.parity.cases import CLIP, SMALL, Case, chat_request, user

ASK = Case("ask", (user("What is this? ", SMALL, CLIP),))


@pytest.fixture
def blind(pairs: Pairs, tiny: Callable[[str], Path]) -> Pair:
    """A pair whose worker has left its vision encoder out."""
    return pairs.get(Flags(tiny("5.x"), worker=("--disable-vision-encoder",)))


def test_media_are_refused_before_they_are_looked_at(blind: Pair) -> None:
    """Chat, StreamChat and Prepare refuse a picture with its path, whatever its bytes, and go on answering text."""
    request = chat_request(ASK)
    request.messages[0].parts[1].image.media.data = b"not even a picture"
    for call in (
        lambda: blind.stub.Chat(request),
        lambda: list(blind.stub.StreamChat(request)),
        lambda: blind.stub.Prepare(pb.PrepareRequest(chat=request)),
    ):
        status = outcome(call)
        assert (status.code, status.reason) == ("FAILED_PRECONDITION", "VISION_DISABLED")
        assert status.field.endswith("messages[0].parts[1].image")
    assert len(canary_tokens(blind)) == 6


def test_a_url_is_refused_before_it_is_fetched(blind: Pair) -> None:
    """A URL that policy forbids is not even compared with the policy."""
    request = chat_request(Case("url", (user(SMALL),)))
    request.messages[0].parts[0].image.media.url = "http://198.51.100.1/cat.png"
    assert outcome(lambda: blind.stub.Chat(request)).reason == "VISION_DISABLED"


def test_items_of_a_raw_prompt_are_refused(blind: Pair) -> None:
    """Generate refuses an item, named by its hash or given whole, at its own path."""
    item = types.MultimodalItem(modality=types.MODALITY_IMAGE, content_hash=bytes(32))
    status = outcome(lambda: blind.stub.Generate(pb.GenerateRequest(token_ids={"ids": [5, 6]}, items=[item])))
    assert (status.code, status.reason, status.field) == ("FAILED_PRECONDITION", "VISION_DISABLED", "items[0]")


def test_placeholders_of_a_raw_prompt_are_refused(blind: Pair) -> None:
    """A placeholder that no item fills is refused too: by its index among ids, or as text that spells the token."""
    ids = [5, 8, 5]  # 8 is <|image_pad|>
    status = outcome(lambda: blind.stub.Generate(pb.GenerateRequest(token_ids={"ids": ids})))
    assert (status.reason, status.field) == ("VISION_DISABLED", "token_ids.ids[1]")
    spelled = pb.GenerateRequest(text="see <|video_pad|> there")
    status = outcome(lambda: blind.stub.Generate(spelled))
    assert (status.reason, status.field) == ("VISION_DISABLED", "text")


def test_text_is_the_same(blind: Pair, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Text is answered as by the whole model, also text that spells a placeholder in a conversation."""
    whole = pairs.get(Flags(tiny("5.x")))
    assert canary_tokens(blind) == canary_tokens(whole)
    request = chat_request(Case("spelled", (user("what is <|image_pad|>?"),)), max_tokens=4)
    answers = [list(pair.stub.Chat(request).choices[0].token_ids) for pair in (blind, whole)]
    assert answers[0] == answers[1]


def test_the_model_says_so(blind: Pair, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """GetModel lists no modality, and the worker's weights take less memory by those of the tower."""
    whole = pairs.get(Flags(tiny("5.x"))).model()
    assert list(blind.model().modalities) == []
    assert list(whole.modalities) == [types.MODALITY_IMAGE, types.MODALITY_VIDEO]
    assert 0 < blind.model().workers[0].weight_bytes < whole.workers[0].weight_bytes


def test_the_environment_is_enough() -> None:
    """TESSERA_DISABLE_VISION_ENCODER stands for the flag, as in docker-compose.yml."""
    code = "from tessera.settings import load_settings; from worker.settings import WorkerSettings; "
    code += "print(load_settings(WorkerSettings, ['--model', 'x']).disable_vision_encoder)"
    environment = os.environ | {"TESSERA_DISABLE_VISION_ENCODER": "true", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "True", done.stderr
    assert "TESSERA_DISABLE_VISION_ENCODER" in (ROOT / "docker-compose.yml").read_text()
