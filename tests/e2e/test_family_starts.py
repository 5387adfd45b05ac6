"""How a checkpoint of each family starts: with its vision encoder, without it, without any, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.harness import Flags, Pair, Pairs, Program
from tests.e2e.status import CANARY, canary_tokens, outcome
from tests.parity.cases import CLIP, SMALL, Case, chat_request, user

FAMILIES = ("qwen3_5", "glm4v", "interns1_pro")
BLIND = ("--disable-vision-encoder",)
ENDS_S = 60.0
UNKNOWN = ("InternS2PreviewForConditionalGeneration", "Qwen3VLForConditionalGenerationX")


def text_only(source: Path, path: Path, *, flat: bool) -> Path:
    """Copy a checkpoint without its encoders, as a language model alone is published.

    Args:
        source: the whole checkpoint.
        path: directory to make.
        flat: whether the text config is all of config.json; else only the encoders' parts are left out.
    """
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, path, dirs_exist_ok=True)
    for file in path.glob("*.safetensors"):
        kept = {name: t for name, t in load_file(file).items() if not name.startswith(("model.visual", "model.time"))}
        save_file(kept, file, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    for name in ("vision_config", "ts_config"):
        config.pop(name, None)
    if flat:
        outer = {name: config[name] for name in ("architectures", "tie_word_embeddings") if name in config}
        config = config["text_config"] | outer
    (path / "config.json").write_text(json.dumps(config))
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (path / name).unlink()
    return path


def picture_at(pair: Pair, index: int) -> tuple[str, str, str]:
    """Status, reason and field of a conversation whose part at `index` is a picture or clip that is none."""
    request = chat_request(Case("ask", (user("What is this? ", SMALL, CLIP),)))
    part = request.messages[0].parts[index]
    getattr(part, part.WhichOneof("part")).media.data = b"not even a medium"
    status = outcome(lambda: pair.stub.Chat(request))
    return status.code, status.reason, status.field


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_vision_encoder(family: str, pairs: Pairs, tiny: Callable[[str], Path]) -> None:
    """Media are refused before they are looked at, placeholders by their index; text is that of the whole model."""
    blind, whole = (pairs.get(Flags(tiny(family), worker=worker)) for worker in (BLIND, ()))
    assert picture_at(blind, 1) == ("FAILED_PRECONDITION", "VISION_DISABLED", "messages[0].parts[1].image")
    assert canary_tokens(blind) == canary_tokens(whole)
    known = json.loads((tiny(family) / "config.json").read_text())
    for name in ("image_token_id", "video_token_id"):
        request = pb.GenerateRequest(token_ids={"ids": [5, known[name], 5]})
        status = outcome(lambda request=request: blind.stub.Generate(request))
        assert (status.reason, status.field) == ("VISION_DISABLED", "token_ids.ids[1]")
    series = [types.MODALITY_TIME_SERIES] if family == "interns1_pro" else []
    assert list(blind.model().modalities) == series
    assert 0 < blind.model().workers[0].weight_bytes < whole.model().workers[0].weight_bytes


@pytest.mark.parametrize(
    ("family", "flat"), [("5.x", False), ("qwen3_5", True), ("glm4v", False), ("interns1_pro", True)]
)
def test_text_only(family: str, flat: bool, pairs: Pairs, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A language model without encoders serves text as the whole checkpoint does, and takes no media."""
    bare = text_only(tiny(family), tmp_path / "bare", flat=flat)
    expected = canary_tokens(pairs.get(Flags(tiny(family))))
    with pairs.fresh(Flags(bare)) as pair:
        assert canary_tokens(pair) == expected
        request = chat_request(replace(CANARY, layout="v4"), max_tokens=6)
        assert list(pair.stub.Chat(request).choices[0].token_ids) == expected
        assert picture_at(pair, 2)[:2] == ("UNIMPLEMENTED", "MODALITY_UNSUPPORTED")
        assert list(pair.model().modalities) == []


def ended(name: str, model: Path, folder: Path, *flags: str) -> tuple[int, str]:
    """Exit code and standard error of a program that should not start."""
    worker = ("--worker", "127.0.0.1:9", "--scratch-dir", str(folder)) if name == "gateway" else ()
    log = folder / f"{name}.log"
    program = Program(name, ("--model", str(model), *worker, *flags), log)
    try:
        return program.process.wait(ENDS_S), log.read_text()
    finally:
        if program.running:
            program.kill()
        program.channel.close()


def reason_of(log: str) -> str:
    """The one line that says why, of a log that has no other complaint."""
    assert "Traceback" not in log
    events = [json.loads(line) for line in log.splitlines()]
    [failed] = [event for event in events if event.get("level") in ("error", "critical", "warning")]
    assert "exception" not in failed
    assert "\n" not in failed["reason"]
    return str(failed["reason"])


@pytest.mark.parametrize("name", ["gateway", "worker"])
@pytest.mark.parametrize(
    "architecture", ["InternS2PreviewForConditionalGeneration", "Qwen3VLForConditionalGenerationX"]
)
def test_an_unknown_architecture(name: str, architecture: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """A name outside the registry, even one that begins like one inside, is refused in one line that lists those."""
    model = tmp_path / "model"
    shutil.copytree(tiny("5.x"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
    code, log = ended(name, model, tmp_path)
    assert code == 1
    reason = reason_of(log)
    assert architecture in reason
    assert "InternS1ProForConditionalGeneration" in reason


def test_no_vision_encoder_to_disable(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The flag fails at start, in one line with the remedy, where the checkpoint has no vision."""
    bare = text_only(tiny("qwen3_5"), tmp_path / "bare", flat=True)
    code, log = ended("worker", bare, tmp_path, *BLIND)
    assert code == 1
    assert "--disable-vision-encoder" in reason_of(log)


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_a_checkpoint_without_config(name: str, tmp_path: Path) -> None:
    """A directory that is no checkpoint is refused in one line."""
    model = tmp_path / "model"
    model.mkdir()
    code, log = ended(name, model, tmp_path)
    assert code == 1
    assert "config.json" in reason_of(log)
