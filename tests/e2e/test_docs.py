"""Every example of docs/multimodal-inputs.md runs against real servers and prints what its comments say.

A `python` block is a program: what its `print` lines say in their comments must come out, "..." standing for anything.
A `console` block is typed: what follows a command is what it prints. Addresses of the page are put in place; its files
are drawn here.
"""

import contextlib
import http.server
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from google.protobuf import json_format

from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tests.e2e.docs_files import Models, write_files
from tests.e2e.harness import ROOT, Flags, Pair, Pairs
from tests.e2e.ways import FRAME_WAYS, VISUAL_WAYS

CHECKPOINT = ROOT / "models/shapes/checkpoint"
PAGE = ROOT / "docs" / "multimodal-inputs.md"
SHAPES = "localhost:50051"  # the embedded model, for pictures and clips
SERIES = "localhost:50052"  # InternS1-Pro, for all three
FILES = "localhost:8000"  # a web server over the files
FRAMES_ALONE = ("`frames_with_fps`", "`frames_with_times`", "`data_video_jpeg`")
MODALITIES = ("image", "video", "time series")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        name: of its heading, numbered where that has several.
        language: of the fence.
        line: of the page, where the source begins.
        source: between the fences.
    """

    name: str
    language: str
    line: int
    source: str


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    heading, count, language, start, lines = "", 0, "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if language and line == "```":
            yield Block(f"{heading}-{count}" if count > 1 else heading, language, start, "\n".join(lines) + "\n")
            language = ""
        elif language:
            lines.append(line)
        elif line.startswith("```"):
            language, start, lines, count = line[3:] or "text", number + 1, [], count + 1
        elif line.startswith("#"):
            heading, count = slug(line.lstrip("# ")), 0


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


TEXT = PAGE.read_text()
BLOCKS = list(blocks_of(TEXT))


def blocks(language: str) -> pytest.MarkDecorator:
    """Run a test on each block of a language."""
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=[block.name for block in chosen])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[[str], Path]) -> Path:
    """The working directory of the examples, with the files that they name."""
    path = tmp_path_factory.mktemp("examples")
    write_files(path, Models(CHECKPOINT, tiny("interns1_pro")))
    return path


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    """The address of a web server over the folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"localhost:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pair_of(pairs: Pairs, tiny: Callable[[str], Path], folder: Path, web: str) -> Callable[[str], Pair]:
    """The servers behind an address of the page."""
    allowed = ("--media-root", str(folder / "media"), "--allow-url-host", web, "--allow-url-network", "127.0.0.0/8")

    def get(address: str) -> Pair:
        model = tiny("interns1_pro") if address == SERIES else CHECKPOINT
        return pairs.get(Flags(model, gateway=allowed))

    return get


@pytest.fixture
def placed(pair_of: Callable[[str], Pair], web: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Puts real addresses into a source; the files are where it looks for them."""
    monkeypatch.chdir(folder)

    def place(source: str) -> str:
        for address in (SHAPES, SERIES):
            if address in source:
                source = source.replace(address, pair_of(address).gateway.address)
        return source.replace(FILES, web)

    return place


@pytest.fixture
def command(pair_of: Callable[[str], Pair], tmp_path: Path) -> dict[str, str]:
    """An environment in which `tessera` is the command, and the embedded model its server."""
    script = tmp_path / "tessera"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tessera_client "$@"\n')
    script.chmod(0o755)
    roots = (ROOT, ROOT / "protos", ROOT / "client")
    return os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "TESSERA_SERVER": pair_of(SHAPES).gateway.address,
    }


def assert_printed(expected: list[str], printed: list[str]) -> None:
    """Line by line; "..." stands for anything."""
    patterns = [".*".join(map(re.escape, line.split("..."))) for line in expected]
    same = len(printed) == len(expected) and all(map(re.fullmatch, patterns, printed))
    assert same, "expected\n{}\nprinted\n{}".format("\n".join(expected), "\n".join(printed))


def told(source: str) -> list[str]:
    """What the comments say is printed: behind a `print`, and on lines of their own below it."""
    found, below = [], False
    for line in source.splitlines():
        if line.lstrip().startswith("print("):
            below = True
            found.append(line.partition("  # ")[2])
        elif below and line.lstrip().startswith("# "):
            found.append(line.lstrip()[2:])
        else:
            below = False
    return found


@blocks("python")
def test_example(block: Block, placed: Callable[[str], str]) -> None:
    """An example runs as it stands, and prints what its comments say."""
    program = compile("\n" * (block.line - 1) + placed(block.source), str(PAGE), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, {"__name__": "__main__"})
    assert_printed(told(block.source), out.getvalue().splitlines())


@blocks("console")
def test_commands(block: Block, placed: Callable[[str], str], command: dict[str, str]) -> None:
    """Commands print what the page shows below them."""
    for typed in re.split(r"^\$ ", block.source, flags=re.M)[1:]:
        line, *shown = typed.splitlines()
        done = subprocess.run(["bash", "-c", placed(line)], env=command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        printed = [" ".join(row.split()) for row in done.stdout.splitlines()]
        shown = [" ".join(row.split()) for row in shown]
        if shown[-1] == "...":
            shown, printed = shown[:-1], printed[: len(shown) - 1]
        assert_printed(shown, printed)


@blocks("sh")
def test_json(block: Block, placed: Callable[[str], str], pair_of: Callable[[str], Pair]) -> None:
    """The JSON that is given to `buf curl` is a request that is answered."""
    typed = placed(block.source.partition("buf curl")[0])
    subprocess.run(["bash", "-e", "-c", typed], check=True, timeout=60)
    request = json_format.Parse(Path("request.json").read_text(), pb.ChatRequest())
    said = "the image shows a red circle and a blue square; in the video a green square moves left."
    assert pair_of(SHAPES).stub.Chat(request).choices[0].text == said


def test_every_way_in_has_its_example() -> None:
    """The table names each way of the end-to-end tests, and each of its cells leads to a heading with an example."""
    table = TEXT.partition("| way in |")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == list(MODALITIES)
    assert {match for row in rows for match in re.findall(r"`(\w+)`", row[0])} >= {*VISUAL_WAYS, *FRAME_WAYS}
    with_example = {block.name for block in BLOCKS if block.language == "python"}
    for way, *cells in rows:
        assert len(cells) == len(MODALITIES)
        for modality, cell in zip(MODALITIES, cells, strict=True):
            links = re.findall(r"\(#([\w-]+)\)", cell)
            assert links or (cell == "–" and (way in FRAMES_ALONE or (way, modality) == ("`patches`", "time series")))
            assert all(link in with_example and link.startswith(slug(modality)) for link in links), cell


def test_links_lead_somewhere() -> None:
    """Each link of the page names a heading of it, or a file of the repository."""
    headings = {slug(line.lstrip("# ")) for line in TEXT.splitlines() if line.startswith("#")}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        assert (PAGE.parent / file).exists() if file else anchor in headings, target


def test_options_and_reports_are_the_contracts() -> None:
    """Every option and every field of a report that the contract has is named in the page's tables."""
    named = set(re.findall(r"`(\w+)`", TEXT))
    messages = (types.ImageOptions, types.VideoOptions, types.TimeSeriesOptions, pb.MediaReport, pb.SamplingPlan)
    fields = {field.name for message in messages for field in message.DESCRIPTOR.fields}
    assert fields <= named, fields - named


def test_reasons_are_the_servers() -> None:
    """Each reason in the table of errors is raised somewhere, with its status among the server's."""
    table = TEXT.partition("| reason | status |")[2].partition("\n\n")[0]
    reasons = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    roots = ("gateway", "worker", "protos/tessera", "client/tessera_client")
    sources = "".join(file.read_text() for root in roots for file in (ROOT / root).rglob("*.py"))
    assert len(reasons) > 20
    assert {reason for reason in reasons if f'"{reason}"' not in sources} == set()
