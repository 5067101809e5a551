"""Durable receipts a second, over gRPC on loopback, beside what the disk and gRPC alone allow, in one run.

raw commits        of the same rows by SQLite alone
blob and commit    the same, each after a file with the update's bytes (write, fsync, rename, fsync the folder): as much
                   is on disk as a receipt promises
bare calls         the same messages to a server that only takes them and answers: what gRPC in Python alone allows

The coordinator is a process of its own and merges meanwhile, as it always does; its CPU time is counted until the last
update is merged. Its senders share another process. How the first two compare depends on what the disk's fsync takes,
which is given. Files are deleted at the end only: where many were deleted just now some file systems create slowly.

python -m benchmarks.receipts [--updates 500] [--workers 1,4,16] [--rounds 7] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc
import psutil
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.receipts_bare import bare_server
from benchmarks.receipts_disk import commits, fsync_seconds
from benchmarks.receipts_samples import blob_of, header_of, small_spec
from coordinator.home import open_home
from protos.chunks import joined
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub

START_SECONDS_MAX = 600.0
"""A wide model's directions take minutes."""


@dataclass(frozen=True)
class Running:
    """A coordinator that answers."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        return sum(psutil.Process(self.pid).cpu_times()[:2])


@dataclass(frozen=True)
class Round:
    """Receipts, commits and bare calls a second; CPU seconds of the coordinator for each receipt; one fsync.

    queued: the share of the updates that is not yet merged when the last receipt comes.
    """

    receipts: float
    raw: float
    with_blob: float
    bare: float
    queued: float
    cpu: float
    fsync: float


COLUMNS: dict[str, tuple[Callable[[Round], float], str]] = {
    "receipts/s": (lambda r: r.receipts, ",.0f"),
    "raw commits/s": (lambda r: r.raw, ",.0f"),
    "ratio": (lambda r: r.receipts / r.raw, ".2f"),
    "blob and commit/s": (lambda r: r.with_blob, ",.0f"),
    "ratio to it": (lambda r: r.receipts / r.with_blob, ".2f"),
    "bare calls/s": (lambda r: r.bare, ",.0f"),
    "CPU ms a receipt": (lambda r: 1000 * r.cpu, ".2f"),
    "still queued": (lambda r: r.queued, ".0%"),
    "fsync ms": (lambda r: 1000 * r.fsync, ".2f"),
}


def main() -> None:
    options = _options()
    if options.send:
        return print(json.dumps(asyncio.run(_send(options.send, options.updates, int(options.workers)))))
    table = Table("workers", *COLUMNS, title=f"median of {options.rounds} rounds")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for workers in options.workers.split(","):
            rounds = list(_rounds(Path(folder) / workers, options.rounds, options.updates, workers))
            table.add_row(workers, *(format(median(map(of, rounds)), form) for of, form in COLUMNS.values()))
    Console(width=140).print(table)


def _rounds(folder: Path, rounds: int, updates: int, workers: str) -> Iterator[Round]:
    """Everything in turn, so that all meet the same disk."""
    with open_home(folder / "home", small_spec()):
        pass
    blob = blob_of(small_spec())
    with coordinator(folder / "home") as running, bare_server() as bare:
        for n in range(rounds):
            raw = commits(folder / f"{n}-raw", updates)
            before = running.cpu_seconds()
            receipts, queued = _sent(running.address, updates, workers)
            cpu = (running.cpu_seconds() - before) / updates
            calls, _ = _sent(bare, updates, workers)
            with_blob = commits(folder / f"{n}-blob", updates, blob)
            yield Round(receipts, raw, with_blob, calls, queued / updates, cpu, fsync_seconds(folder, updates))


def _sent(address: str, updates: int, workers: str) -> tuple[float, int]:
    """What `_send` says, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.receipts", "--send", address, "--workers", workers]
    said = subprocess.run([*command, "--updates", str(updates)], stdout=subprocess.PIPE, check=True).stdout
    speed, queued = json.loads(said)
    return speed, queued


@contextmanager
def coordinator(home: Path) -> Iterator[Running]:
    """A coordinator on a home that is there, as a process of its own, which answers."""
    (home / "address").unlink(missing_ok=True)  # of one that was killed
    command = [sys.executable, "-m", "fedshare", "coordinator", "--home", str(home), "--port", "0", "--no-lineage"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + START_SECONDS_MAX
    while not (home / "address").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit((home / "log").read_text())
        time.sleep(0.05)
    try:
        yield Running((home / "address").read_text(), process.pid)
    finally:
        process.kill()
        process.wait()


async def _send(address: str, updates: int, workers: int) -> tuple[float, int]:
    """Receipts a second of `workers` that each send one update after the other, and how many are queued then.

    Returns when all are merged.
    """
    torch.set_num_threads(1)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = FederationStub(channel)
        spec = await stub.Describe(pb.DescribeRequest())
        blob = blob_of(spec)
        names = [f"worker-{uuid.uuid4().hex[:8]}" for _ in range(workers)]
        for name in names:
            await stub.Join(pb.JoinRequest(worker=name, task=name, base_fingerprint=spec.base.fingerprint))
        began = time.perf_counter()
        await asyncio.gather(
            *(_worker(stub, spec, name, range(n, updates, workers), blob) for n, name in enumerate(names))
        )
        speed = updates / (time.perf_counter() - began)
        queued = left = await _queued(stub)
        while left:
            await asyncio.sleep(0.1)
            left = await _queued(stub)
        return speed, queued


async def _queued(stub: FederationStub) -> int:
    return joined(pb.StatusReply(), [piece async for piece in stub.Status(pb.StatusRequest())]).queued


async def _worker(stub: FederationStub, spec: pb.FederationSpec, name: str, numbers: range, blob: bytes) -> None:
    for n in numbers:
        blob = blob[:-8] + struct.pack("<ff", n, time.monotonic())  # no two are equal
        header = header_of(spec, name, name, blob)
        receipt = await stub.Submit(iter([pb.SubmitRequest(header=header), pb.SubmitRequest(chunk=blob)]))
        assert receipt.outcome == pb.OUTCOME_QUEUED and not receipt.repeated, receipt


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=500, help="a round")
    parser.add_argument("--workers", default="1,4,16", help="how many send at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on which disk; else where temporary files go")
    parser.add_argument("--send", metavar="ADDRESS", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
