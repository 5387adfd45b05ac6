"""The rooms' import rules, on the source and in fresh processes.

Next: tests/rules/test_protos.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]
ROOTS = [str(ROOT / name) for name in ("", "protos", "kernels", "client")]
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module({package!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
names = {{name.partition(".")[0] for name in sys.modules}}
print(" ".join(sorted(names & {forbidden!r})))
"""


def loaded(package: str, forbidden: set[str]) -> str:
    """Those of `forbidden` that are loaded once every module of a package has been imported in a fresh process."""
    program = IMPORT_ALL.format(package=package, forbidden=forbidden)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environ["PYTHONPATH"] = os.pathsep.join(ROOTS)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_import_contracts_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room imports what DESIGN's table forbids it, directly or through another room."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*ROOTS, *sys.path])
    assert lint_imports(config_filename=str(ROOT / ".importlinter"), no_cache=True) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("gateway", {"torch", "torchvision", "transformers", "safetensors", "worker", "tessera_kernels"}),
        ("worker", {"transformers", "torchvision", "gateway", "tessera_client"}),
        ("tessera_kernels", {"grpc", "gateway", "worker", "transformers"}),
        ("tessera_client", {"torch", "transformers", "gateway", "worker", "tessera_kernels"}),
        ("tessera", {"torch", "transformers", "gateway", "worker", "tessera_kernels"}),
    ],
)
def test_a_room_loads_without_what_it_must_not_need(package: str, forbidden: set[str]) -> None:
    """Importing every module of a room loads none of the packages that it must do without, not even through others."""
    assert loaded(package, forbidden) == ""


@pytest.mark.slow
def test_pool_processes_stay_small() -> None:
    """What a media process imports leaves gRPC, protobuf and the web out: each has its own copy of it."""
    program = (
        "import gateway.media.child, sys; names = {m.partition('.')[0] for m in sys.modules}; "
        "print(' '.join(sorted(names & {'grpc', 'google', 'tokenizers', 'torch'})))"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.strip() == ""
