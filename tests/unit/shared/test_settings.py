"""Tests of protos/tessera/settings.py."""

from dataclasses import dataclass, field

import pytest

from tessera.settings import load_settings, parse_bool, parse_size


@dataclass(frozen=True)
class Settings:
    """A process with one setting of each kind.

    More words that the help does not show.
    """

    model: str = field(metadata={"help": "100% needed"})
    port: int = field(default=50051, metadata={"help": "port"})
    share: float = field(default=0.5, metadata={"help": "share"})
    budget: int = field(default=1 << 20, metadata={"help": "bytes", "unit": "bytes"})
    reflection: bool = field(default=True, metadata={"help": "reflection"})
    worker: tuple[str, ...] = field(default=("a:1",), metadata={"help": "address"})
    level: str = field(default="info", metadata={"help": "level", "choices": ("info", "debug")})
    limit: int | None = field(default=None, metadata={"help": "limit"})


def load(*argv: str, **environ: str) -> Settings:
    """Settings of flags and variables, both given."""
    return load_settings(Settings, ["--model", "m", *argv], environ)


def test_defaults() -> None:
    """What nobody sets has its default."""
    assert load() == Settings(model="m")


def test_flags_of_each_kind() -> None:
    """A field's type says how its flag is read."""
    settings = load("--port", "1", "--share", "0.25", "--budget", "2GiB", "--no-reflection", "--limit", "3")
    assert (settings.port, settings.share, settings.budget) == (1, 0.25, 2 << 30)
    assert (settings.reflection, settings.limit) == (False, 3)


def test_environment_of_each_kind() -> None:
    """A variable TESSERA_NAME says the same as its flag."""
    settings = load(
        TESSERA_PORT="1", TESSERA_SHARE="0.25", TESSERA_BUDGET="64k", TESSERA_REFLECTION="false", TESSERA_LIMIT="3"
    )
    assert (settings.port, settings.share, settings.budget) == (1, 0.25, 64 << 10)
    assert (settings.reflection, settings.limit) == (False, 3)


def test_the_flag_wins() -> None:
    """Where both are given the flag holds."""
    assert load("--port", "2", TESSERA_PORT="1").port == 2


def test_a_required_setting_may_come_from_the_environment() -> None:
    """A field without a default is required, by flag or by variable."""
    assert load_settings(Settings, [], {"TESSERA_MODEL": "m"}).model == "m"
    with pytest.raises(SystemExit):
        load_settings(Settings, [], {})


def test_lists() -> None:
    """A list is a repeated flag or a comma-separated variable; flags replace the default and the variable."""
    assert load("--worker", "b:2", "--worker", "c:3,d:4").worker == ("b:2", "c:3", "d:4")
    assert load(TESSERA_WORKER="b:2, c:3,").worker == ("b:2", "c:3")
    assert load("--worker", "e:5", TESSERA_WORKER="b:2").worker == ("e:5",)


def test_two_readings_do_not_add_up() -> None:
    """Reading flags twice in one process gives the same settings twice."""
    assert load("--worker", "b:2") == load("--worker", "b:2")


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["--port", "x"], {}),
        (["--level", "loud"], {}),
        (["--budget", "much"], {}),
        (["--unknown", "1"], {}),
        ([], {"TESSERA_PORT": "x"}),
        ([], {"TESSERA_LEVEL": "loud"}),
        ([], {"TESSERA_REFLECTION": "perhaps"}),
    ],
)
def test_bad_values_end_the_program_with_one_line(
    argv: list[str], environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad flag or variable is named on stderr and the program ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        load(*argv, **environ)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error:" in said
    assert all(name in said for name in environ)


def test_help_names_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    """The help shows each flag with its variable, and the class's first line."""
    with pytest.raises(SystemExit):
        load("--help")
    said = capsys.readouterr().out
    assert "A process with one setting of each kind." in said
    assert "--budget" in said
    assert "[TESSERA_BUDGET]" in said
    assert "100% needed" in said


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1k", 1 << 10), ("64M", 64 << 20), ("2GiB", 2 << 30), ("1.5g", 3 << 29), (" 1 TB ", 1 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    """Sizes are bytes, with powers of 1024."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "B", "ten", "1x", "1.5"])
def test_bad_sizes(text: str) -> None:
    """What is no size is refused."""
    with pytest.raises(ValueError, match=r"."):
        parse_size(text)


@pytest.mark.parametrize(("text", "truth"), [("1", True), ("Yes", True), ("ON", True), ("0", False), ("", False)])
def test_bools(text: str, truth: bool) -> None:
    """Truth has several spellings."""
    assert parse_bool(text) is truth
