"""Compiles the native libraries into kernels/tessera_kernels/lib/, ahead of time: nothing is compiled while serving.

    python kernels/build.py                       # what is older than its sources
    python kernels/build.py --force
    python kernels/build.py --architectures "80 90a 100 120"   # "": no CUDA ops
    python kernels/build.py --emulator            # also the CUDA sources for the CPU, for tests without a GPU

- C++ CPU ops and the gateway's resize library: g++ (or what CXX names), nothing of torch. The CPU ops are compiled once
  for each instruction set; which one is loaded is decided at run time, so a build runs anywhere.
- CUDA ops: nvcc, called directly, and torch's headers (any build of torch: the ops use its stable ABI, so one library
  serves torch 2.10 and later). nvcc is the one on the path, in /usr/local/cuda, or of the packages of the extra
  "cuda-build"; without it they are left out.
- The emulated ops are the same CUDA sources compiled by g++ against kernels/emulator; they go to kernels/build.

Where something cannot be built, serving falls back to torch's own ops and says so.

Next: kernels/tessera_kernels/library.py
"""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CSRC, INCLUDE, EMULATOR = ROOT / "csrc", ROOT / "include", ROOT / "emulator"
CPU_SOURCES = CSRC / "cpu"
OUTPUT = ROOT / "tessera_kernels" / "lib"
BUILD = ROOT / "build"

ARCHITECTURES = "80 90a"  # sm_80 also runs on 8.6 and 8.9; name more for newer devices
TORCH_TARGET = "0x020a000000000000"  # the oldest torch whose stable ABI the ops use, 2.10
CUDA_PREFIX = Path("/usr/local/cuda")

# No -ffast-math: it would let the linker switch the whole process to flushing denormals, and reorder what must not be.
CPU_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-maybe-uninitialized",
)  # fmt: skip
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
# Without unrolling: it would take most of the time to compile, and emulated launches are small.
EMULATOR_FLAGS = ("-x", "c++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas")
NVCC_FLAGS = (
    "-x", "cu", "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall", "--expt-relaxed-constexpr",
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One file to be made from others by one command.

    Args:
        path: what is made.
        inputs: files that it must not be older than.
        command: makes it, the path of what is made left out.
    """

    path: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]

    def is_fresh(self) -> bool:
        """Tell whether it is newer than all it is made from, and this file."""
        inputs = [*self.inputs, Path(__file__)]
        return self.path.exists() and self.path.stat().st_mtime >= max(file.stat().st_mtime for file in inputs)

    def build(self) -> None:
        """Run the command, to a temporary name first: a server that runs keeps the file that it has mapped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        print(f"kernels: {self.path.relative_to(ROOT.parent) if self.path.is_relative_to(ROOT.parent) else self.path}")
        try:
            subprocess.run([*self.command, "-o", str(temporary)], check=True)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def cpu_units(compiler: str) -> list[Unit]:
    """Return the libraries that can be built for this kind of processor."""
    ops = tuple(sorted(file for file in CPU_SOURCES.glob("*.cpp") if not file.name.startswith("resize")))
    resize = tuple(sorted(CPU_SOURCES.glob("resize*.cpp")))
    headers = tuple(CPU_SOURCES.glob("*.h"))

    def unit(name: str, sources: Sequence[Path], flags: Sequence[str]) -> Unit:
        return Unit(OUTPUT / name, (*sources, *headers), (compiler, *CPU_FLAGS, *flags, *map(str, sources)))

    found = [unit("libtessera_resize.so", resize, ())] if resize else []
    if _is_x86():
        found.append(unit("libtessera_cpu_avx2.so", ops, ("-fopenmp", *AVX2)))
        found.append(unit("libtessera_cpu_avx512.so", ops, ("-fopenmp", *AVX512)))
    return found


def cuda_units(nvcc: str, torch: Path, architectures: Sequence[str]) -> tuple[list[Unit], Unit]:
    """Return the objects of the CUDA ops, and the library that is linked from them."""
    folder = BUILD / f"cuda-{'-'.join(architectures)}"
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    command = (nvcc, *NVCC_FLAGS, *targets, *_torch_flags(torch))
    objects = [
        Unit(folder / f"{file.name}.o", (file, *_headers()), (*command, "-c", str(file))) for file in _cuda_sources()
    ]
    return objects, _link(OUTPUT / "libtessera_cuda.so", objects, (nvcc, "-shared"), torch)


def emulator_units(
    compiler: str, torch: Path, cuda_include: Path, ops: Sequence[str], library: Path
) -> tuple[list[Unit], Unit]:
    """Return the objects of the same sources for the CPU, and their library.

    Args:
        compiler: C++ compiler.
        torch: installed package.
        cuda_include: CUDA's headers.
        ops: names of the sources in csrc to take; all where empty.
        library: where it goes; objects lie beside it.
    """
    folder = library.parent / "emulator"
    include = ("-I", str(EMULATOR), "-isystem", str(cuda_include))
    command = (compiler, *EMULATOR_FLAGS, *include, *_torch_flags(torch))
    chosen = [file for file in _cuda_sources() if not ops or file.stem in (*ops, "ops")]
    headers = (*_headers(), *EMULATOR.glob("*.h"))
    objects = [
        Unit(folder / f"{file.name}.o", (file, *headers), (*command, "-c", str(file)))
        for file in (*chosen, *EMULATOR.glob("*.cpp"))
    ]
    return objects, _link(library, objects, (compiler, "-shared"), torch)


def _cuda_sources() -> list[Path]:
    return sorted([*CSRC.glob("*.cu"), *CSRC.glob("*.cpp")])


def _headers() -> tuple[Path, ...]:
    return (*INCLUDE.glob("*.cuh"), *CSRC.glob("*.h"))


def _torch_flags(torch: Path) -> tuple[str, ...]:
    return (f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", "-isystem", str(torch / "include"), "-I", str(INCLUDE))


def _link(library: Path, objects: Sequence[Unit], linker: Sequence[str], torch: Path) -> Unit:
    files = tuple(unit.path for unit in objects)
    folders = (f"-L{torch / 'lib'}", f"-L{Path(linker[0]).resolve().parent.parent / 'lib'}")
    return Unit(library, files, (*linker, *map(str, files), *folders, "-ltorch_cpu", "-ldl"))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _find_torch() -> Path | None:
    spec = importlib.util.find_spec("torch")
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _find_nvcc(torch: Path | None) -> str | None:
    """Return nvcc: of the path, of the usual prefix, or of the packages that the extra "cuda-build" installs."""
    candidates = [CUDA_PREFIX / "bin" / "nvcc"]
    if torch is not None:
        candidates += sorted(torch.parent.glob("nvidia/cu*/bin/nvcc"))
    return shutil.which("nvcc") or next((str(file) for file in candidates if file.exists()), None)


def _cuda_include(nvcc: str) -> Path:
    beside = Path(nvcc).resolve().parent.parent / "include"
    return beside if (beside / "cuda_bf16.h").exists() else CUDA_PREFIX / "include"


def _build(units: Sequence[Unit], force: bool) -> None:
    """Build what is not fresh, as many at a time as there are cores."""
    stale = [unit for unit in units if force or not unit.is_fresh()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(Unit.build, stale))


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="build what is fresh as well")
    parser.add_argument(
        "--architectures",
        default=os.environ.get("TESSERA_CUDA_ARCHITECTURES", ARCHITECTURES),
        help="CUDA targets, as in sm_<target> (default: %(default)s)",
    )
    parser.add_argument("--emulator", action="store_true", help="build the CUDA ops for the CPU as well, for tests")
    parser.add_argument("--emulator-only", action="store_true", help="build the CUDA ops for the CPU, and nothing else")
    parser.add_argument("--ops", default="", help="names of the sources in csrc to emulate (default: all)")
    parser.add_argument("--emulator-library", type=Path, default=BUILD / "libtessera_emulated.so", help="where it goes")
    options = parser.parse_args()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    torch = _find_torch()
    nvcc = _find_nvcc(torch) if options.architectures else None
    if not options.emulator_only:
        if compiler is None:
            print("kernels: no C++ compiler found; torch's and Pillow's own ops will serve", file=sys.stderr)
        else:
            _build(cpu_units(compiler), options.force)
        if not options.architectures:
            print("kernels: no CUDA architectures; on CUDA, torch's own ops will serve", file=sys.stderr)
        elif nvcc is None or torch is None:
            missing = "nvcc" if nvcc is None else "torch"
            print(f"kernels: {missing} not found; on CUDA, torch's own ops will serve", file=sys.stderr)
        else:
            objects, library = cuda_units(nvcc, torch, options.architectures.split())
            _build(objects, options.force)
            _build([library], options.force)
    if options.emulator or options.emulator_only:
        if compiler is None or torch is None or nvcc is None or not _is_x86():
            print("kernels: no emulator without a C++ compiler, torch, CUDA's headers and x86-64", file=sys.stderr)
            return 0
        objects, library = emulator_units(
            compiler,
            torch,
            _cuda_include(nvcc),
            [name for name in options.ops.split(",") if name],
            options.emulator_library,
        )
        _build(objects, options.force)
        _build([library], options.force)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"kernels: {Path(error.cmd[0]).name} failed, see above: {error.cmd[-3]}")
