"""The walls round a pool process: its environment, its limits, and its end when the gateway's comes first.

Next: gateway/media/child.py
"""

import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

# FFmpeg opens local files in plain containers only, so that a playlist in disguise opens nothing else.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,ogg,gif,mpegts,mpeg,mpegvideo"
# One thread per library: the pool's width is the number of its processes.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": f"protocol_whitelist;file|format_whitelist;{FORMATS}",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "OPENCV_LOG_LEVEL": "SILENT",
    "OPENCV_VIDEOIO_PRIORITY_LIST": "FFMPEG",
}
_OPEN_FILES = 64


def environment() -> dict[str, str]:
    """The whole environment of a process that decodes: the above, and where this one finds its modules."""
    return {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def enter(memory_limit_bytes: int, file_limit_bytes: int) -> None:
    """Limit this process for good: address space, file size, open files, no core dumps.

    Args:
        memory_limit_bytes: Of address space, beside what is mapped already.
        file_limit_bytes: Of each file that it writes.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory_limit_bytes, mapped + memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit_bytes, file_limit_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A terminal's Ctrl-C is for the gateway, which ends the pool in its own order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def allow_cpu(seconds: float) -> None:
    """Let this process use that much more CPU time; past it, the kernel ends it with SIGXCPU."""
    limit = math.ceil(time.process_time() + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def end_with(lifeline: int, folder: Path) -> None:
    """End this process, and remove the pool's folder, when the other end of a pipe closes.

    Args:
        lifeline: Reading end; the gateway holds the writing end and never writes.
        folder: The pool's scratch folder.
    """

    def wait() -> None:
        os.read(lifeline, 1)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
