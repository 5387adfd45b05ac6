"""The native libraries as they were built: what is in them, and that they load on machines without a GPU.

Next: kernels/build.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tessera_kernels import cuda, fakes

KERNELS = Path(__file__).resolve().parents[3] / "kernels"
SCHEMA = re.compile(r'"(\w+)\(')

needs_library = pytest.mark.skipif(not cuda.LIBRARY.is_file(), reason="the CUDA library is not built (make kernels)")


def declared() -> set[str]:
    """The ops of the page of schemas."""
    return set(SCHEMA.findall((KERNELS / "csrc" / "ops.cpp").read_text()))


def test_every_op_has_schema_fake_and_implementation() -> None:
    """An op of the page of schemas has a fake for tracing and one source that implements it."""
    implemented = [
        name
        for source in (KERNELS / "csrc").glob("*.cu")
        for name in re.findall(r'm\.impl\("(\w+)"', source.read_text())
    ]
    assert sorted(implemented) == sorted(declared()) == sorted(fakes.FAKES)


@needs_library
@pytest.mark.slow
def test_the_cuda_library_loads_without_a_gpu() -> None:
    """Beside a torch without CUDA the library loads, and registers every op for CUDA tensors and for no others."""
    program = """
import torch
from tessera_kernels import cuda
library = cuda.load(cuda.LIBRARY, "tessera", "cuda")
for name in cuda.NAMES:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tessera::{name}", "CUDA"), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"tessera::{name}", "CPU"), name
library.native.tessera_launches_wait(1)  # the debug setting
x = torch.empty(3, 64, device="meta", dtype=torch.bfloat16)
assert torch.ops.tessera.rms_norm(x, x[0], 1e-6).shape == (3, 64)
try:
    torch.ops.tessera.rms_norm(torch.ones(3, 64), torch.ones(64), 1e-6)
except NotImplementedError as error:
    print(str(error).splitlines()[0])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=KERNELS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'CPU' backend" in done.stdout


@needs_library
def test_the_cuda_library_needs_nothing_of_torchs_cuda() -> None:
    """What is linked is torch's CPU library alone, so that one build serves every build of torch."""
    listed = subprocess.run(["readelf", "-d", str(cuda.LIBRARY)], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\]", listed)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or "python" in name]


def test_why_the_ops_run_or_not() -> None:
    """Without a device the CUDA ops take no tensor and say why."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert not cuda.available() and not cuda.runs_on(torch.device("cuda"), torch.bfloat16)
    assert cuda.reason() == "this machine has no CUDA device, or torch no CUDA"


@pytest.mark.slow
def test_a_wheel_carries_the_libraries_and_works_without_a_gpu(tmp_path: Path) -> None:
    """A wheel holds what was built, and serves by the reference where nothing can be loaded, saying so."""
    source = tmp_path / "source"  # a copy: building leaves files beside the sources
    shutil.copytree(
        KERNELS.parent,
        source,
        ignore=shutil.ignore_patterns(".*", "node_modules", "build", "models", "tests", "results"),
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    made = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stderr
    [wheel] = tmp_path.glob("*.whl")
    program = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tessera_kernels import cuda, ops
assert sys.argv[1] in cuda.__file__
x = torch.randn(3, 64).bfloat16()
assert ops.rms_norm(x, x[0], 1e-6).shape == (3, 64)
for device in ("cpu", "cuda"):
    print(ops.implementations(torch.bfloat16, torch.device(device))["rms_norm"])
"""
    unpacked = tmp_path / "unpacked"
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(unpacked)], check=True)
    built = {file.name for file in (KERNELS / "tessera_kernels" / "lib").glob("*.so")}
    assert {file.name for file in (unpacked / "tessera_kernels" / "lib").glob("*.so")} == built
    done = subprocess.run([sys.executable, "-c", program, str(unpacked)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the C++ library takes fp32, not bfloat16" in done.stdout
    assert "no CUDA device" in done.stdout or torch.cuda.is_available()
