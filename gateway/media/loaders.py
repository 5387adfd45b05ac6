"""The video backends by name: which are installed, which one is used, and how to get one that is missing.

`auto` takes the first of `ORDER` that is installed. OpenCV comes first: the gateway has it in any case, and frames
equal to its own are what parity is measured with. torchcodec comes behind those that need no torch.

decord is refused by name. Its decoder reads ahead in a thread, and the error of one damaged frame comes with whichever
frame is asked next: good frames are lost, not always the same ones. Its last release carries FFmpeg 4.1.

Next: gateway/media/opencv_loader.py
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from gateway.media import sandbox
from gateway.media.video import VideoLoader

AUTO = "auto"
_TRY_S = 30.0  # seconds for the import of a backend that is not used: longer, and it is not told


@dataclass(frozen=True)
class Backend:
    """One backend.

    Attributes:
        loader: "module:Class" of its VideoLoader.
        packages: Python packages that it imports.
        install: The command that installs it.
    """

    loader: str
    packages: tuple[str, ...]
    install: str

    @property
    def is_installed(self) -> bool:
        """Whether its packages are there; nothing is imported."""
        return all(find_spec(package) is not None for package in self.packages)


BACKENDS = {
    "opencv": Backend("gateway.media.opencv_loader:OpenCVLoader", ("cv2",), "pip install opencv-python-headless"),
    "pyav": Backend("gateway.media.pyav_loader:PyAVLoader", ("av",), "pip install 'tessera[pyav]'"),
    "torchcodec": Backend(
        "gateway.media.torchcodec_loader:TorchCodecLoader",
        ("torchcodec", "torch"),
        "pip install torch torchcodec, and FFmpeg's shared libraries (apt-get install ffmpeg)",
    ),
}
ORDER = tuple(BACKENDS)
DECLINED = {"decord": "it loses good frames beside damaged ones; pip install 'tessera[pyav]' and name pyav"}
NAMES = (AUTO, *ORDER, *DECLINED)


class LoaderMissingError(Exception):
    """A backend that cannot be used; the text is one line that says how to get it."""


def choose(name: str, is_installed: Callable[[str], bool] = lambda name: BACKENDS[name].is_installed) -> str:
    """The backend that is used.

    Args:
        name: One of NAMES.
        is_installed: Of a backend; tests give their own.

    Raises:
        LoaderMissingError: It is not installed, or not offered; none is installed, for "auto".
    """
    if name in DECLINED:
        raise LoaderMissingError(f"The video loader {name!r} is not offered: {DECLINED[name]}")
    if name != AUTO:
        if not is_installed(name):
            raise missing(name)
        return name
    for candidate in ORDER:
        if is_installed(candidate):
            return candidate
    raise missing(ORDER[0])


def load(name: str) -> VideoLoader:
    """Import a backend.

    Raises:
        LoaderMissingError: It is not there, or what it needs is not.
    """
    module, _, attribute = BACKENDS[name].loader.partition(":")
    try:
        loader: VideoLoader = getattr(import_module(module), attribute)()
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec's words for libraries that it does not find
        raise missing(name) from error
    return loader


def find_others(used: str) -> tuple[str, ...]:
    """The further backends that can be used here, in order; each is tried in a process of its own, all at once.

    Args:
        used: The one in use, which is left out.
    """
    tried = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-s", "-m", "gateway.media.loaders", name],
            env=sandbox.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ORDER
        if name != used and BACKENDS[name].is_installed
    }
    return tuple(name for name, process in tried.items() if _ends_well(process))


def _ends_well(process: "subprocess.Popen[bytes]") -> bool:
    try:
        return process.wait(_TRY_S) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def missing(name: str) -> LoaderMissingError:
    """The error of a backend that is not there, with the command that brings it."""
    return LoaderMissingError(f"The video loader {name!r} is not installed here: {BACKENDS[name].install}")


def main() -> int:
    """Import the backend that is named on the command line; returns 0 where it can be used."""
    try:
        load(sys.argv[1])
    except LoaderMissingError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
