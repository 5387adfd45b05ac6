"""What every file of the repository keeps to.

Next: README.md
"""

import ast
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("gateway", "worker", "kernels", "client", "protos/tessera", "models", "benchmarks", "examples", "tests")
PRODUCTION = ("gateway", "worker", "kernels", "client", "protos/tessera")
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 400
TEXT = {".py", ".proto", ".cpp", ".h", ".cu", ".cuh", ".md", ".toml", ".yml", ".yaml", ".json", ".jinja", ".sh", ".txt"}


@cache
def committed() -> tuple[Path, ...]:
    """Files that are committed or about to be."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git here")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=True
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return tuple(path for path in paths if path.is_file())


def python_files(*folders: str) -> list[Path]:
    """Python files under the folders, generated stubs left out."""
    roots = tuple(ROOT / folder for folder in folders)
    return [
        path
        for path in committed()
        if path.suffix == ".py" and "_pb2" not in path.name and any(path.is_relative_to(root) for root in roots)
    ]


def name(path: Path) -> str:
    """Path as a reader knows it."""
    return path.relative_to(ROOT).as_posix()


STANDARD_FOLDERS = {
    "app",
    "data",
    "etc",
    "home",
    "lib",
    "mnt",
    "models",
    "opt",
    "root",
    "src",
    "srv",
    "tmp",
    "usr",
    "var",
}


def test_no_file_names_this_machine() -> None:
    """No file holds a path that exists on its author's machine alone."""
    top = ROOT.parts[1]
    own = "" if top in STANDARD_FOLDERS else rf"|(?<![\w.])/{re.escape(top)}/\w"
    pattern = re.compile(rf"/home/[a-z]+/|/Users/[a-z]+/|/root/\w{own}")
    found = []
    for path in committed():
        if path.suffix in TEXT or path.suffix == "":
            found += [f"{name(path)}: {hit}" for hit in pattern.findall(path.read_text(errors="replace"))]
    # This file spells the patterns.
    assert [line for line in found if not line.startswith(name(Path(__file__)))] == []


def test_nothing_is_left_to_do() -> None:
    """No file carries a note to finish it later."""
    words = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    found = [
        name(path) for path in committed() if path.suffix in TEXT and words.search(path.read_text(errors="replace"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", SOURCES)
def test_modules_say_what_they_are_for(folder: str) -> None:
    """Every module begins with its purpose, and those of the programs name the file to open next."""
    silent = []
    for path in python_files(folder):
        source = path.read_text()
        text = ast.get_docstring(ast.parse(source)) or ""
        if source and (not text or (folder in PRODUCTION and "Next:" not in text and path.name != "__init__.py")):
            silent.append(name(path))
    assert not silent, "\n".join(silent)


def test_the_next_file_is_there() -> None:
    """What `Next:` names exists, seen from the file, its folder's parents or the repository."""
    lost = []
    everything = {name(path) for path in committed()}
    for path in python_files(*SOURCES):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        for match in re.findall(r"[\w./-]+\.(?:py|proto|md|cpp|cu|h)\b", text.partition("Next:")[2]):
            said = match.lstrip("./")
            if not any(known == said or known.endswith(f"/{said}") for known in everything):
                lost.append(f"{name(path)}: {said}")
    assert not lost, "\n".join(lost)


def test_functions_are_short() -> None:
    """No function of the programs has more than fifty lines."""
    long = []
    for path in python_files(*PRODUCTION):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name(path)}:{node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_long_files_say_why() -> None:
    """A file above 400 lines gives the reason in its header."""
    long = []
    for path in python_files(*SOURCES):
        text = path.read_text()
        if text.count("\n") > MAX_FILE_LINES and "long" not in (ast.get_docstring(ast.parse(text)) or "").lower():
            long.append(name(path))
    assert not long, "\n".join(long)


def test_every_test_is_a_sentence_of_specification() -> None:
    """Each test's docstring states, in a sentence, what holds."""
    silent = []
    for path in python_files("tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node) or ""
                if not text.strip().endswith((".", ")")) or len(text.split()) < 4:
                    silent.append(f"{name(path)}:{node.name}")
    assert not silent, "\n".join(silent)


def test_only_settings_read_the_environment() -> None:
    """A process reads flags and environment once, in its settings; no other module looks."""
    readers = set()
    for path in python_files("gateway", "worker", "kernels/tessera_kernels", "protos/tessera"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
                readers.add(name(path))
    assert readers <= {"protos/tessera/settings.py"}


def test_no_module_unpickles() -> None:
    """No path that input reaches can run code: no pickle, no torch.load, no remote code."""
    pattern = re.compile(
        r"\bimport pickle\b|\bpickle\.loads?\b|\btorch\.load\(|trust_remote_code\s*=\s*True|\beval\(|\bexec\("
    )
    found = [
        name(path) for path in python_files(*PRODUCTION) if pattern.search(path.read_text().replace(".eval()", ""))
    ]
    assert not found, "\n".join(found)
