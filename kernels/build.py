"""Compiles the C++ CPU ops and the gateway's resize library into kernels/tessera_kernels/lib/.

    python kernels/build.py            # builds what is older than its sources
    python kernels/build.py --force

Needs g++ (or what CXX names) and nothing of torch. The CPU ops are compiled once for each instruction set; which one is
loaded is decided at run time, so a build runs anywhere. Where nothing can be built, serving falls back to torch's own
ops and says so.

Next: kernels/tessera_kernels/library.py
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc" / "cpu"
OUTPUT = ROOT / "tessera_kernels" / "lib"

# No -ffast-math: it would let the linker switch the whole process to flushing denormals, and reorder what must not be.
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-maybe-uninitialized",
)  # fmt: skip
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")


@dataclass(frozen=True)
class Library:
    """One shared library: its file name, its sources, and its own flags."""

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where it is built."""
        return OUTPUT / self.name

    def is_fresh(self) -> bool:
        """Tell whether it is newer than all sources, headers and this file."""
        inputs = [*self.sources, *SOURCES.glob("*.h"), Path(__file__)]
        return self.path.exists() and self.path.stat().st_mtime > max(file.stat().st_mtime for file in inputs)


def libraries() -> list[Library]:
    """Return what can be built on this kind of processor."""
    ops = tuple(sorted(file for file in SOURCES.glob("*.cpp") if not file.name.startswith("resize")))
    resize = tuple(sorted(SOURCES.glob("resize*.cpp")))
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    found = [Library("libtessera_resize.so", resize, ())] if resize else []
    if x86:
        found.append(Library("libtessera_cpu_avx2.so", ops, ("-fopenmp", *AVX2)))
        found.append(Library("libtessera_cpu_avx512.so", ops, ("-fopenmp", *AVX512)))
    return found


def build(library: Library, compiler: str) -> None:
    """Compile a library, to a temporary name first: a server that runs keeps the file that it has mapped."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    temporary = library.path.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *FLAGS, *library.flags, *map(str, library.sources), "-o", str(temporary)]
    try:
        subprocess.run(command, check=True)
        temporary.replace(library.path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="build what is fresh as well")
    force = parser.parse_args().force
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        print("kernels: no C++ compiler found; torch's and Pillow's own ops will serve", file=sys.stderr)
        return 0
    for library in libraries():
        if force or not library.is_fresh():
            print(f"kernels: {library.path.relative_to(ROOT.parent)}")
            build(library, compiler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
