"""The command: what each subcommand writes, in one process with a scripted server."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import Internal, InvalidArgument, ResourceExhausted, Unavailable
from tessera.v1 import inference_service_pb2 as pb
from tessera.v1 import types_pb2 as types
from tessera_client import Item, save_embeddings
from tessera_client.cli import main
from tessera_client.cli.console import Console
from tests.fakes.inference import FakeInference, FakeServer


@dataclass
class Ran:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `tessera ARGS` against the fake server; `terminal` draws with rich, `stdin` is piped in."""

    def run(*args: object, terminal: bool = False, stdin: str | bytes = "") -> Ran:
        monkeypatch.setenv("TESSERA_SERVER", server.address)
        monkeypatch.setenv("COLUMNS", "100")
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        out, err = io.StringIO(), io.StringIO()
        console = Console(json="--json" in args, out=out, err=err, rich_out=terminal, rich_err=terminal)
        return Ran(main([str(arg) for arg in args], console), out.getvalue(), err.getvalue())

    return run


def test_chat_streams_the_answer(run: Run, service: FakeInference) -> None:
    """The answer and a line's end are on stdout, nothing else, and nothing is on stderr."""
    ran = run("chat", "What", "is", "this?")
    assert ran == Ran(0, "a red circle.\n", "")
    assert service.last.messages[0].parts[0].text == "What is this?"
    assert service.requests[-1][0] == "StreamChat"


def test_chat_keeps_the_order_of_media(run: Run, service: FakeInference, picture: Path, tmp_path: Path) -> None:
    """Media stand in the order of the command line, of both kinds, before the text; system comes first."""
    clip = tmp_path / "b.mp4"
    clip.write_bytes(b"clip")
    run("chat", "--image", picture, "--video", clip, "--system", "Be brief.", "--image", picture, "Which?")
    system, turn = service.last.messages
    assert (system.role, system.parts[0].text) == (pb.ROLE_SYSTEM, "Be brief.")
    assert [p.WhichOneof("part") for p in turn.parts] == ["image", "video", "image", "text"]


def test_chat_flags_reach_the_request(run: Run, service: FakeInference, picture: Path) -> None:
    """Sampling, media options and template arguments are written where they belong."""
    flags = "--model shapes --max-tokens 9 --temperature 0 --top-k 3 --n 1 --stop x --stop y --stop-token-id 4 "
    flags += "--ignore-eos --logit-bias 5=-1.5 --fps 2 --num-frames 4 --min-pixels 10 --max-pixels 20 --seed 5 "
    flags += "--video-max-pixels 99 --max-duration 3 --template-arg think=false --template-arg name=Ada --priority 2"
    assert run("chat", *flags.split(), "--image", picture, "--video", "server:a.mp4", "hi").code == 0
    request = service.last
    assert (request.model, request.sampling.max_tokens, request.sampling.seed) == ("shapes", 9, 5)
    assert request.sampling.HasField("temperature")
    assert (list(request.sampling.stop), list(request.sampling.stop_token_ids)) == (["x", "y"], [4])
    assert (dict(request.sampling.logit_bias), request.sampling.ignore_eos) == ({5: -1.5}, True)
    media = request.media_options
    assert (media.image.min_pixels, media.image.max_pixels, media.video.max_pixels) == (10, 20, 99)
    assert (media.video.fps, media.video.num_frames, media.video.max_duration_s) == (2, 4, 3)
    assert dict(request.template_args) == {"think": False, "name": "Ada"}


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        (["--fps", "2"], "--fps changes nothing: there is no --video"),
        (["--max-pixels", "9", "--video", "server:a.mp4"], "--max-pixels changes nothing: there is no --image"),
        (["--rate", "100"], "--rate changes nothing: there is no --time-series"),
        (["--grid", "1,2,2"], "--grid changes nothing: there is no --embeddings"),
        (["--source-fps", "2", "--video", "server:a.mp4"], "--source-fps belongs to separate frames"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(run: Run, flags: list[str], refusal: str) -> None:
    """An option of a medium that is not there is an error, not silence."""
    ran = run("chat", *flags, "hi")
    assert ran.code != 0
    assert refusal in ran.err


def test_frame_indices_and_folders(run: Run, service: FakeInference, picture: Path) -> None:
    """Exact frames are numbers with commas; a folder is a list of frames with its rate."""
    run("chat", "--video", picture.parent, "--source-fps", "4", "--frame-indices", "0,2", "hi")
    video = service.last.messages[0].parts[0].video
    assert (len(video.media.frames.frames), video.media.frames.source_fps) == (1, 4)
    assert list(service.last.media_options.video.frame_indices) == [0, 2]


def test_sources_by_name(run: Run, service: FakeInference) -> None:
    """URLs, ids of uploads and paths on the server are passed on."""
    service.uploads[b"\xab" * 32] = b"held"
    ran = run("chat", "--image", "https://x/a.png", "--image", "id:" + "ab" * 32, "--video", "server:a.mp4", "hi")
    assert ran.code == 0
    sources = [getattr(p, p.WhichOneof("part")).media.WhichOneof("source") for p in service.last.messages[0].parts[:3]]
    assert sources == ["url", "media_id", "path"]


def test_text_is_read_from_a_pipe(run: Run, service: FakeInference) -> None:
    """Without a text, or with "-", standard input is the text."""
    run("chat", stdin="piped\n")
    assert service.last.messages[0].parts[0].text == "piped"
    run("generate", "-", stdin="raw")
    assert service.last.text == "raw"


def test_a_medium_is_read_from_a_pipe(run: Run, service: FakeInference, picture: Path) -> None:
    """A source that is "-" is standard input, once; the text is then that of the command line alone."""
    run("chat", "--image", "-", "What?", stdin=picture.read_bytes())
    image, text = service.last.messages[0].parts
    assert (image.image.media.data, text.text) == (picture.read_bytes(), "What?")
    run("chat", "--video", "-", stdin=b"clip")
    assert [part.video.media.data for part in service.last.messages[0].parts] == [b"clip"]
    for twice in (("--image", "-", "-"), ("--image", "-", "--video", "-", "hi")):
        ran = run("chat", *twice, stdin=b"x")
        assert (ran.code, "standard input can be read once" in ran.err) == (2, True)


def test_embeddings_are_items(run: Run, service: FakeInference, tmp_path: Path) -> None:
    """A safetensors file says its grid and side tensors; an npy file is given its grid; both stand in order."""
    rows = np.ones((4, 8), np.float32)
    item = Item("image", "embeddings", rows, grid_thw=(1, 4, 4), side_arrays={"deepstack": rows[None]})
    save_embeddings(tmp_path / "a.safetensors", item)
    np.save(tmp_path / "b.npy", rows)
    files = ("--embeddings", tmp_path / "a.safetensors", "--embeddings", tmp_path / "b.npy")
    assert run("chat", *files, "--grid", "1,2,8", "hi").code == 0
    first, second, text = service.last.messages[0].parts
    assert (first.item.grid_thw.h, list(first.item.side_tensors["deepstack"].shape)) == (4, [1, 4, 8])
    assert (second.item.grid_thw.w, second.item.payload_kind, text.text) == (8, types.PAYLOAD_KIND_EMBEDDINGS, "hi")
    ran = run("chat", *files, "hi")
    assert (ran.code, "does not say its grid" in ran.err) == (2, True)
    held = "image:" + "ab" * 32
    service.uploads[b"\xab" * 32] = b"held"
    assert run("generate", "--item", held, "--embeddings", tmp_path / "a.safetensors", "--ids", "1,2").code == 0
    assert [item.WhichOneof("payload") for item in service.last.items] == ["content_hash", "tensor"]
    assert run("generate", "--embeddings", tmp_path / "b.npy", "hi").code == 2


def test_frames_in_a_data_url_take_their_rate(run: Run, service: FakeInference) -> None:
    """--source-fps goes with data:video/jpeg as with a folder of frames."""
    run("chat", "--video", "data:video/jpeg;base64,YQ==,Yg==", "--source-fps", "4", "hi")
    frames = service.last.messages[0].parts[0].video.media.frames
    assert ([frame.data for frame in frames.frames], frames.source_fps) == ([b"a", b"b"], 4)


def test_chat_as_json_lines(run: Run) -> None:
    """--json writes a line for each delta, and a last one with everything."""
    ran = run("chat", "--json", "hi")
    *deltas, last = ran.lines
    assert [delta["text"] for delta in deltas] == ["a ", "red ", "circle."]
    assert last["done"]
    assert last["choices"][0]["text"] == "a red circle."
    assert (last["usage"]["completion_tokens"], last["choices"][0]["finish_reason"]) == (4, "stop")


def test_chat_as_one_object(run: Run, picture: Path) -> None:
    """--json --no-stream writes one object; hashes are hexadecimal digits."""
    ran = run("chat", "--json", "--no-stream", "--image", picture, "hi")
    (answer,) = ran.lines
    assert answer["choices"][0]["text"] == "a red circle."
    assert len(answer["media"][0]["content_hash"]) == 64
    assert run("chat", "--no-stream", "hi").out == "a red circle.\n"


def test_several_answers_are_written_one_a_line(run: Run) -> None:
    """With --n each answer has its line, streamed or not."""
    assert run("chat", "--n", "3", "hi").out == "a red circle.\n" * 3
    assert run("chat", "--n", "3", "--no-stream", "hi").out == "a red circle.\n" * 3


def test_stats_stand_on_stderr(run: Run, picture: Path) -> None:
    """--stats tells tokens, times and why it ended, beside the answer."""
    ran = run("chat", "--stats", "--image", picture, "hi")
    assert ran.out == "a red circle.\n"
    assert ran.err.startswith("14 prompt tokens (4 image) · 4 generated · first after ")
    assert ran.err.endswith(" · stop, seed 7\n")


def test_generate_takes_text_ids_and_items(run: Run, service: FakeInference) -> None:
    """A raw prompt goes as text, ids as ids, items by their hash."""
    assert run("generate", "Once upon").out == "a red circle.\n"
    assert service.last.text == "Once upon"
    service.uploads[b"\x01" * 32] = b"held"
    ran = run("generate", "--ids", "1,2 3", "--item", "image:" + "01" * 32, "--json", "--no-stream")
    assert list(service.last.token_ids.ids) == [1, 2, 3]
    assert ran.lines[0]["prompt"]["token_ids"] == [1, 2, 3]


def test_prepare_tells_counts_frames_and_times(run: Run, picture: Path) -> None:
    """Plain text where stdout is no terminal: tab-separated, every frame and time."""
    ran = run("prepare", "--image", picture, "--video", picture, "what?")
    assert "1\timage\t" in ran.out
    assert "frames:\t0 5 10 15\n" in ran.out
    assert "times (s):\t0.00 0.62 1.25 1.88\n" in ran.out
    assert "prompt tokens:\t22 (text 10, images 4, videos 8)\n" in ran.out
    assert run("prepare", "--raw", "--show-prompt", "--show-ids", "x").out.endswith("0 1 2 3 4 5 6 7 8 9\n")


def test_prepare_draws_a_table_on_a_terminal(run: Run, picture: Path) -> None:
    """On a terminal the media stand in a drawn table, without tabs."""
    ran = run("prepare", "--image", picture, "what?", terminal=True)
    assert "─" in ran.out
    assert "\t" not in ran.out
    assert "80x60" in ran.out


def test_prepare_as_json(run: Run, picture: Path) -> None:
    """--json writes the whole plan as one object."""
    (plan,) = run("prepare", "--json", "--video", picture, "what?").lines
    assert plan["media"][0]["sampling"]["timestamps"] == [0.0, 0.625, 1.25, 1.875]
    assert plan["items"][0]["ranges"] == [[0, 4]]
    assert plan["usage"]["prompt_tokens"] == 18


def test_models_tells_state_limits_and_workers(run: Run) -> None:
    """One model's facts and its workers, for people and as JSON."""
    ran = run("models")
    for line in ("state:\tready", "context:\t2,048 tokens", "inline limit:\t32 MiB", "127.0.0.1:7001\tready\tcpu"):
        assert line in ran.out
    assert "─" in run("models", "shapes", terminal=True).out
    assert run("models", "--json").lines[0]["models"][0]["limits"]["max_frames"] == 768


def test_models_says_when_nothing_is_served_yet(run: Run, service: FakeInference) -> None:
    """No worker yet is a sentence, not an empty page."""
    service.model = None
    assert run("models").out.startswith("No model is served yet")
    assert run("models", "--json").lines == [{"models": []}]


def test_upload_prints_an_id_for_each_file(run: Run, service: FakeInference, picture: Path) -> None:
    """The id that is printed is one that --image takes."""
    ran = run("upload", picture)
    name = ran.out.split("\t")[0]
    assert bytes.fromhex(name.removeprefix("id:")) in service.uploads
    assert run("chat", "--image", name, "hi").code == 0
    (told,) = run("upload", "--json", picture).lines
    assert (told["uploads"][0]["existed"], told["uploads"][0]["file"]) == (True, str(picture))


@pytest.mark.slow
def test_wait_tells_what_the_model_is_doing(run: Run, service: FakeInference) -> None:
    """--wait holds the request back until the model is ready, and says what it sees, once each."""
    service.states = [(None, 0.0), (pb.MODEL_STATE_LOADING, 0.5)]
    ran = run("chat", "--wait", "hi")
    assert (ran.code, ran.out) == (0, "a red circle.\n")
    assert ran.err == "starting...\nloading the weights...\n"


@pytest.mark.slow
def test_progress_is_drawn_on_a_terminal_only(run: Run, tmp_path: Path) -> None:
    """Bars stand on stderr, and not a byte of them where it is no terminal."""
    clip = tmp_path / "big.mp4"
    clip.write_bytes(bytes(5 << 20))
    drawn = run("chat", "--video", clip, "hi", terminal=True)
    assert "big.mp4" in drawn.err
    assert drawn.out == "a red circle.\n"
    assert run("chat", "--video", clip, "hi") == Ran(0, "a red circle.\n", "")


ERRORS = [
    (
        InvalidArgument("Cannot read it.", reason="IMAGE_UNREADABLE", field="sampling.n"),
        2,
        "error: Cannot read it (IMAGE_UNREADABLE; sampling.n)\n",
    ),
    (
        ResourceExhausted("Busy.", reason="OVERLOADED", retry_after_s=2),
        5,
        "error: Busy (OVERLOADED; try again in 2 s)\n",
    ),
    (Unavailable("No worker is up."), 3, "error: No worker is up (UNAVAILABLE; --wait waits for it)\n"),
]


@pytest.mark.parametrize(("error", "code", "line"), ERRORS, ids=["wrong", "busy", "no worker"])
def test_errors_are_one_line_and_a_code(run: Run, service: FakeInference, error, code: int, line: str) -> None:
    """A failure is one line on stderr with its reason and what to do, and a documented exit code."""
    service.fail["StreamChat"] = error
    assert run("chat", "hi") == Ran(code, "", line)


def test_an_error_names_the_file_at_fault(run: Run, service: FakeInference, picture: Path) -> None:
    """A field path that points at a medium is told as what the user called it."""
    path = "messages[1].parts[0].image.media.data"
    service.fail["StreamChat"] = InvalidArgument("Not a picture.", reason="IMAGE_UNREADABLE", field=path)
    ran = run("chat", "--system", "s", "--image", picture, "hi")
    assert ran.err == f"error: {picture}: not a picture (IMAGE_UNREADABLE)\n"


def test_errors_as_json(run: Run, service: FakeInference) -> None:
    """With --json the one line is an object, still on stderr."""
    service.fail["StreamChat"] = Internal()
    ran = run("chat", "--json", "hi")
    told = json.loads(ran.err)["error"]
    assert (ran.code, ran.out, told["code"], told["exit_code"]) == (1, "", "INTERNAL", 1)


def test_an_internal_error_names_the_request(run: Run, service: FakeInference) -> None:
    """Where the log has the rest, the line says under which id."""
    service.fail["StreamChat"] = Internal()
    assert "; request " in run("chat", "hi", terminal=True).err


def test_no_server_says_how_to_start_one(run: Run) -> None:
    """Nothing at the address: the line names it and `tessera serve`."""
    ran = run("chat", "--server", "127.0.0.1:1", "hi")
    assert ran.code == 3
    assert ran.err.startswith("error: no server at 127.0.0.1:1: start one with `tessera serve`")
    assert ran.err.count("\n") == 1


def test_a_timeout_says_so(run: Run, service: FakeInference) -> None:
    """A deadline that passes names its flag."""
    service.hold.add("StreamChat")
    ran = run("chat", "--timeout", "0.1", "hi")
    assert (ran.code, ran.err) == (6, "error: no answer within 0.1 s: give it more time with --timeout\n")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("chat", "--image", "nothing.png", "hi"), "nothing.png: no such file"),
        (("chat",), "nothing to say"),
        (("generate",), "nothing to continue"),
        (("chat", "--server", "host:port", "hi"), "use host:port"),
        (("chat", "--fps", "many", "hi"), "invalid float value"),
        (("generate", "--item", "image:xy", "hi"), "64 digits"),
        (("chat", "--template-arg", "x", "hi"), "NAME=VALUE"),
        (("chat", "--embeddings", "nothing.npy", "hi"), "nothing.npy: no such file"),
        (("chat", "--grid", "1,2", "hi"), "T,H,W"),
        (("sing",), "invalid choice"),
        ((), "required: COMMAND"),
    ],
)
def test_wrong_use_is_told_with_code_2(run: Run, capsys: pytest.CaptureFixture[str], args, text: str) -> None:
    """A flag or file that is wrong is told, and the code is 2."""
    ran = run(*args)
    assert ran.code == 2
    assert text in ran.err + capsys.readouterr().err


def test_interruption_is_code_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends without a traceback."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tessera_client.cli.chat.write_stream", interrupt)
    assert run("chat", "hi") == Ran(130, "", "")


def test_help_lists_the_commands(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """--help and --version work without a server."""
    assert run("--help").code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("chat", "generate", "prepare", "models", "upload", "serve", "TESSERA_SERVER"))
    assert run("--version").code == 0
    assert run("chat", "--help").code == 0
    assert "--video-max-pixels" in capsys.readouterr().out
