"""Durable receipts a second, over gRPC on loopback, beside raw commits of the same rows by SQLite alone, in one run.

Both sides hold a row on disk (WAL, synchronous=FULL) before they count it. The coordinator is a process of its
own and merges meanwhile, as it always does; its senders share another one.

python -m benchmarks.receipts [--updates 500] [--workers 1,4,16] [--rounds 7] [--folder DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import grpc
import torch
from rich.console import Console
from rich.table import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateTable

from coordinator.home import open_home
from coordinator.tables import journal
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub
from share_algo import Adapter, Basis, Factors, append
from share_algo.codec import encode_update

SHAPES = {"encoder.a": (12, 10), "encoder.b": (8, 16)}
START_SECONDS_MAX = 60.0


def main() -> None:
    options = _options()
    if options.send:
        return print(json.dumps(asyncio.run(_send(options.send, options.updates, int(options.workers)))))
    table = Table("workers", "receipts/s", "raw commits/s", "ratio", title=f"median of {options.rounds} rounds")
    for workers in options.workers.split(","):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rounds = list(_rounds(Path(folder), options.rounds, options.updates, workers))
        receipts, raw, ratio = (median(column) for column in zip(*((r, w, r / w) for r, w in rounds), strict=True))
        table.add_row(workers, f"{receipts:,.0f}", f"{raw:,.0f}", f"{ratio:.2f}")
    Console().print(table)


def _rounds(folder: Path, rounds: int, updates: int, workers: str) -> Iterator[tuple[float, float]]:
    """(receipts a second, raw commits a second), in turn, so that both meet the same disk."""
    with open_home(folder / "home", small_spec()):
        pass
    with coordinator(folder / "home") as address:
        command = [sys.executable, "-m", "benchmarks.receipts", "--send", address, "--workers", workers]
        for n in range(rounds):
            before = _raw(folder / f"{n}-before.sqlite", updates)
            sent = subprocess.run([*command, "--updates", str(updates)], stdout=subprocess.PIPE, check=True)
            yield json.loads(sent.stdout), (before + _raw(folder / f"{n}-after.sqlite", updates)) / 2


def _raw(file: Path, rows: int) -> float:
    """Commits a second of journal-like rows, one row a commit, one after the other."""
    database = sqlite3.connect(file, isolation_level=None)
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {setting}")
    database.execute(str(CreateTable(journal).compile(dialect=sqlite.dialect())))
    insert = f"INSERT INTO journal VALUES ({', '.join('?' * len(journal.columns))})"
    began = time.perf_counter()
    for n in range(1, rows + 1):
        row = (n, uuid.uuid4().hex, "worker", 1, f"task-{n}", 0, "0" * 64, 1120, '["no", "yes"]', "{}", time.time())
        database.execute(insert, row)
    return rows / (time.perf_counter() - began)


@contextmanager
def coordinator(home: Path) -> Iterator[str]:
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
        yield (home / "address").read_text()
    finally:
        process.kill()
        process.wait()


async def _send(address: str, updates: int, workers: int) -> float:
    """Receipts a second of `workers` that each send one update after the other."""
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
        return updates / (time.perf_counter() - began)


async def _worker(stub: FederationStub, spec: pb.FederationSpec, name: str, numbers: range, blob: bytes) -> None:
    for n in numbers:
        blob = blob[:-8] + struct.pack("<ff", n, time.monotonic())  # no two are equal
        header = header_of(spec, name, name, blob)
        receipt = await stub.Submit(iter([pb.SubmitRequest(header=header), pb.SubmitRequest(chunk=blob)]))
        assert receipt.outcome == pb.OUTCOME_QUEUED and not receipt.repeated, receipt


def header_of(spec: pb.FederationSpec, worker: str, task: str, blob: bytes) -> pb.UpdateHeader:
    return pb.UpdateHeader(
        update_id=uuid.uuid4().hex,
        federation_id=spec.federation_id,
        worker=worker,
        incarnation=1,
        task=task,
        base_fingerprint=spec.base.fingerprint,
        digest=digest_of(blob),
        nbytes=len(blob),
        labels=["no", "yes"],
    )


def small_spec() -> pb.FederationSpec:
    modules = [pb.TargetModule(name=name, out_features=N, in_features=D) for name, (N, D) in SHAPES.items()]
    base = pb.BaseModel(name="none", fingerprint="f" * 64)
    return pb.FederationSpec(name="receipts", base=base, modules=modules, rank=4, tolerance=1e-5)


def blob_of(spec: pb.FederationSpec) -> bytes:
    g = torch.Generator().manual_seed(0)
    factors = {
        m.name: Factors(torch.randn(m.out_features, 2, generator=g), torch.randn(2, m.in_features, generator=g))
        for m in spec.modules
    }
    adapter = Adapter(factors, {"classifier.weight": torch.randn(2, 6, generator=g)})
    return encode_update(append(Basis(), adapter, tolerance=spec.tolerance).update)


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
