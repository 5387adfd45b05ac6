"""`tessera serve`: a gateway and its workers on this machine, in one command.

Next: ../local/pair.py.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tessera_client.channel import DEFAULT_PORT
from tessera_client.cli import INTERRUPTED
from tessera_client.cli.console import Console
from tessera_client.local import programs
from tessera_client.local.child import Child
from tessera_client.local.log_lines import for_people
from tessera_client.local.pair import ChildEnded, Pair, Stopped
from tessera_client.results import Model

WORKER_HOST = "127.0.0.1"
WORKER_FLAGS = ("dtype", "device", "max_model_len", "kv_cache_bytes")
WORKER_SWITCHES = ("disable_vision_encoder", "batch_invariant", "check_launches")
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this subcommand."""
    parser.add_argument("--model", metavar="DIR_OR_NAME", help="checkpoint folder or hub name [the embedded shapes]")
    parser.add_argument("--host", default="127.0.0.1", help="where clients reach the gateway [127.0.0.1]")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"0 = any that is free [{DEFAULT_PORT}]")
    parser.add_argument("--workers", type=int, metavar="N", help="how many [1, or as many as --worker-port]")
    parser.add_argument(
        "--worker-port", type=int, action="append", default=[], metavar="PORT", help="of a worker [free]; repeatable"
    )
    parser.add_argument("--dtype", help="the workers' arithmetic, auto, float32 or bfloat16")
    parser.add_argument("--device", help="the workers' device: auto, cpu or cuda")
    parser.add_argument("--max-model-len", metavar="N", help="most tokens of prompt and answer together")
    parser.add_argument("--kv-cache-bytes", metavar="SIZE", help="of each worker, such as 2GiB")
    parser.add_argument("--batch-invariant", action="store_true", help="answers whose bits no neighbour changes")
    parser.add_argument("--check-launches", action="store_true", help="wait after every launch of a CUDA op (slow)")
    parser.add_argument(
        "--disable-vision-encoder", action="store_true", help="leave the vision weights out and refuse images and clips"
    )
    parser.add_argument("--worker-arg", action="append", default=[], metavar="FLAGS", help="passed on; repeatable")
    parser.add_argument("--gateway-arg", action="append", default=[], metavar="FLAGS", help="passed on; repeatable")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="write logs there, not to standard error")
    parser.add_argument("--quiet", action="store_true", help="write no logs")
    parser.add_argument("--ready-timeout", type=float, metavar="SECONDS", help="give up loading after this [never]")
    parser.add_argument("--json", action="store_true", help="write the ready line as one JSON object")
    parser.epilog = "FLAGS are given as --worker-arg='--max-sequences 8'."


def run(args: argparse.Namespace, console: Console) -> int:
    """Start, wait until it serves, and stay until a signal or the end of a program."""
    started = time.monotonic()
    pair = start(args, log_writer(console, quiet=args.quiet))
    pair.catch_signals()
    try:
        with console.loading() as on_progress:
            model = pair.wait_ready(on_progress, args.ready_timeout)
        announce(model, pair, console, time.monotonic() - started)
        pair.watch()
        raise AssertionError("watching ends by an exception")
    except Stopped as stopped:
        console.note("stopping...")
        return INTERRUPTED if stopped.number == signal.SIGINT else 0
    except ChildEnded as ended:
        console.error(f"{ended}{_log_hint(args)}", {"error": {"message": str(ended), "exit_code": 1}})
        return 1
    except TimeoutError as late:
        console.error(f"{late}{_log_hint(args)}", {"error": {"message": str(late), "exit_code": 6}})
        return 6
    finally:
        pair.stop()


def start(args: argparse.Namespace, write_line: Callable[[str, str], None]) -> Pair:
    """Start the programs.

    Raises:
        OSError: the model's folder is not there, or the port is taken.
        ImportError: a program is not installed.
    """
    root = programs.repository_root()
    programs.check_installed(root)
    model = programs.resolve_model(args.model, root)
    if args.port:
        programs.check_port(args.host, args.port)
    count = max(args.workers or 0, len(args.worker_port), 1)
    free_port, *free = programs.free_ports(1 + count)
    port = args.port or free_port
    worker_ports = [*args.worker_port, *free][:count]
    addresses = [f"{WORKER_HOST}:{worker_port}" for worker_port in worker_ports]
    flags = worker_flags(args)
    commands = {
        "worker" if count == 1 else f"worker {number}": programs.worker_command(
            model, WORKER_HOST, worker_port, flags, args.worker_arg
        )
        for number, worker_port in enumerate(worker_ports, 1)
    }
    commands["gateway"] = programs.gateway_command(model, args.host, port, addresses, args.gateway_arg)
    *workers, gateway = start_children(commands, programs.child_environment(root), write_line, args.log_dir)
    return Pair(gateway, workers, f"{client_host(args.host)}:{port}")


def start_children(
    commands: Mapping[str, list[str]],
    environment: Mapping[str, str],
    write_line: Callable[[str, str], None],
    log_dir: Path | None,
) -> list[Child]:
    """Start all, or none."""
    if log_dir is not None:
        log_dir.mkdir(parents=True, exist_ok=True)
    children: list[Child] = []
    try:
        for name, command in commands.items():
            log_file = log_dir / f"{name.replace(' ', '-')}.log" if log_dir else None
            children.append(Child(name, command, environment, write_line, log_file))
    except BaseException:
        for child in children:
            child.finish()
        raise
    return children


def worker_flags(args: argparse.Namespace) -> list[str]:
    """Return the workers' flags among ours; those that were not given are left to the worker."""
    flags: list[str] = []
    for name in WORKER_FLAGS:
        if getattr(args, name) is not None:
            flags += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    flags += ["--" + name.replace("_", "-") for name in WORKER_SWITCHES if getattr(args, name)]
    return flags


def client_host(host: str) -> str:
    """Return the host by which a client on this machine reaches one that listens on `host`."""
    return EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)


def announce(model: Model, pair: Pair, console: Console, seconds: float) -> None:
    """Write the one line that says that it serves, and what to try."""
    server = "" if pair.address.endswith(f":{DEFAULT_PORT}") else f" --server {pair.address}"
    hint = f'tessera chat{server} --image picture.png "Describe the image."'
    if "image" not in model.modalities:
        hint = f'tessera chat{server} "Hello"'
    if console.json:
        pids = {"gateway": pair.gateway.pid, "workers": [worker.pid for worker in pair.workers]}
        told: dict[str, Any] = {"ready": True, "address": pair.address, "model": model.name, "pids": pids}
        console.object(told)
        return
    workers = f"{len(pair.workers)} workers, " if len(pair.workers) > 1 else ""
    console.line(f"ready: {model.name} at {pair.address} ({workers}{seconds:.1f} s); try: {hint}")


def log_writer(console: Console, *, quiet: bool) -> Callable[[str, str], None]:
    """Return what writes a program's log line: as it is, or on a terminal made short for people."""

    def write(name: str, line: str) -> None:
        if not quiet:
            console.log(for_people(name, line) if console.rich_err else line)

    return write


def _log_hint(args: argparse.Namespace) -> str:
    return f" (logs in {shlex.quote(str(args.log_dir))})" if args.log_dir else ""
