"""Processes forked from a server that has imported what they need: as real as any, and there in a tenth of the time.

They inherit nothing of the tests': no threads, nothing in memory; the environment is given to them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

IMPORTED = (
    "parts", "coordinator.process", "fedshare.app", "fedshare.federation_file", "workers.life",
    "peft", "transformers.models.auto.modeling_auto",
)  # fmt: skip


def forked(target: Callable[..., None], *args: object, name: str = "") -> BaseProcess:
    """`target(*args)`, running. Its exit code is that of sys.exit in it, or minus the signal that ended it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    process = context.Process(target=target, args=args, name=name or None)
    process.start()
    return process


def fedshare_process(*args: object, out: Path, err: Path, **environment: str) -> BaseProcess:
    """`fedshare ARGS`, running. What it prints is appended to files."""
    return forked(_fedshare, list(map(str, args)), (out, err), {**os.environ, **environment})


def fedshare(*args: object, seconds: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`fedshare ARGS` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = fedshare_process(*args, out=out, err=err, **environment)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(list(args), seconds)
        return subprocess.CompletedProcess(list(args), process.exitcode, out.read_text(), err.read_text())


def fedshare_anew(*args: object) -> subprocess.CompletedProcess[str]:
    """`python -m fedshare ARGS` to its end: for what depends on when something is imported."""
    command = [sys.executable, "-m", "fedshare", *map(str, args)]
    quiet = "GRPC_VERBOSITY"  # which it must see to itself
    environment = {name: value for name, value in os.environ.items() if name != quiet}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def _fedshare(arguments: list[str], streams: tuple[Path, Path], environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(streams, start=1):
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    from fedshare.main import main

    sys.argv = ["fedshare", *arguments]
    main()
