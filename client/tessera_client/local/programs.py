"""How the two programs are started here: where they are, which model, which flags, which ports.

Next: child.py.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

EMBEDDED = "shapes"
INSTALLED_MODELS = Path("/opt/tessera/models")
IMPORT_ROOTS = ("", "protos", "kernels", "client")


def repository_root() -> Path | None:
    """Return the root of the checkout that this file is in; None where the package is installed."""
    root = Path(__file__).resolve().parents[3]
    return root if all((root / name).is_dir() for name in ("gateway", "worker", "protos")) else None


def embedded_model(root: Path | None, installed: Path = INSTALLED_MODELS) -> Path:
    """Return the folder of the embedded model.

    Raises:
        FileNotFoundError: it is neither in the checkout nor installed.
    """
    folders = [installed / EMBEDDED, installed / EMBEDDED / "checkpoint"]
    if root is not None:
        folders.insert(0, root / "models" / EMBEDDED / "checkpoint")
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise FileNotFoundError(errno.ENOENT, "the embedded model is not here: name one with --model", str(folders[0]))


def resolve_model(name: str | None, root: Path | None) -> str:
    """Return what both programs take as --model: a folder, or a hub name as it is.

    Raises:
        FileNotFoundError: it looks like a folder, and there is none.
    """
    if not name or name == EMBEDDED:
        return str(embedded_model(root))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(errno.ENOENT, "holds no config.json: not a checkpoint", str(path))
        return str(path.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
    return name


def child_environment(root: Path | None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the programs: ours, with the checkout on the import path."""
    environment = dict(os.environ if environ is None else environ)
    # A folder "worker" where the user happens to stand is not our worker.
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    if root is not None:
        paths = [str(root / part) for part in IMPORT_ROOTS]
        environment["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [environment.get("PYTHONPATH")])])
    return environment


def check_installed(root: Path | None, names: Iterable[str] = ("gateway", "worker")) -> None:
    """Tell which program is missing, without importing any.

    Raises:
        ImportError: naming what to install.
    """
    for name in names:
        if root is None and importlib.util.find_spec(name) is None:
            raise ImportError(f"the {name} is not installed here: pip install 'tessera[{name}]'")


def worker_command(model: str, host: str, port: int, flags: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return the command line of a worker."""
    where = ["--model", model, "--host", host, "--port", str(port)]
    return [sys.executable, "-m", "worker", *where, *flags, *split_arguments(extra)]


def gateway_command(model: str, host: str, port: int, workers: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Return the command line of the gateway."""
    where = ["--model", model, "--host", host, "--port", str(port)]
    for worker in workers:
        where += ["--worker", worker]
    return [sys.executable, "-m", "gateway", *where, *split_arguments(extra)]


def split_arguments(values: Sequence[str]) -> list[str]:
    """Return the flags of repeated --worker-arg or --gateway-arg: each may hold several, quoted as in a shell."""
    return [argument for value in values for argument in shlex.split(value)]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nothing listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def check_port(host: str, port: int) -> None:
    """Tell now what the gateway would find later.

    Raises:
        OSError: something listens there, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                text = "is in use: choose another with --port (0 = any that is free)"
                raise OSError(error.errno, text, f"port {port}") from None
            raise OSError(error.errno, error.strerror, f"{host}:{port}") from None
