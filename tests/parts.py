"""Real parts for tests: coordinators as processes of their own, workers that submit handmade updates, tiny tasks.

Nothing here stands in for anything: sockets, SQLite files, processes and signals are real ones.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import safetensors.numpy
import torch
from forks import fedshare_process
from servers import free_port

from coordinator.catalog import Catalog
from coordinator.history import History
from coordinator.home import Home, open_home
from coordinator.members import Members
from coordinator.process import FindWeights, serve_home
from coordinator.receive import Receiver
from protos.chunks import cut, digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from protos.fedshare.v1.federation_pb2_grpc import FederationStub
from share_algo import Adapter, Basis, Factors, append
from share_algo.codec import decode_basis, decode_block, encode_update, metadata_of
from share_algo.types import NO_TENSORS
from workers.client import Client

if TYPE_CHECKING:
    from workers.life import Life, Plan, Progress

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 60.0
WAIT_SECONDS_MAX = 60.0

FINGERPRINT = "f" * 64
SHAPES = {"encoder.a": (12, 10), "encoder.b": (8, 16)}
RANK = 4


WORDS = (
    "red", "green", "blue", "one", "two", "three", "four", "cat", "dog", "bird",
    "runs", "sleeps", "sings", "here", "there", "now", "then", "never",
)  # fmt: skip
"""All that the tiny base model's tokenizer knows."""


def small_spec(name: str = "small", shapes: Mapping[str, tuple[int, int]] = SHAPES) -> pb.FederationSpec:
    """A federation whose updates need no model: two small modules."""
    return pb.FederationSpec(
        name=name,
        base=pb.BaseModel(name="none", fingerprint=FINGERPRINT),
        modules=[pb.TargetModule(name=m, out_features=N, in_features=D) for m, (N, D) in shapes.items()],
        rank=RANK,
        tolerance=1e-5,
        seed=7,
        directions=pb.Directions(first=4),
        recipe=pb.Recipe(epochs=1, batch_size=8, tokens_max=16),
    )


def until(true: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS_MAX) -> Any:
    """Wait until `true()` gives something; fails the test with `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)
    return found


def one_sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """What a user's mistake leads to: exit code 2, one line on stderr. Returns the line without `error: `."""
    assert ended.returncode == 2, ended.stderr
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert ended.stdout == ""
    return line.removeprefix("error: ")


class Coordinator:
    """`fedshare coordinator` on `home`, in a process of its own. Started again it keeps its address."""

    def __init__(self, home: Path, *options: str, log: Path | None = None):
        self.home, self._options = home, options
        self.log_file = log or home.with_name(f"{home.name}.log")
        self.port, self.address = free_port(), ""
        self._process: BaseProcess | None = None

    def __enter__(self) -> Coordinator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.exitcode is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        (self.home / "address").unlink(missing_ok=True)  # of one that was killed
        command = ("coordinator", "--home", self.home, "--port", self.port, *self._options)
        self._process = fedshare_process(*command, out=self.log_file, err=self.log_file)
        until(self._has_address, "the coordinator serves", START_SECONDS_MAX)
        self.address = (self.home / "address").read_text()
        self.port = int(self.address.rpartition(":")[2])

    def kill(self) -> None:
        """As a power cut would."""
        self._process.kill()
        self._process.join()

    def stop(self, number: int = signal.SIGINT) -> int | None:
        """Ask it to stop; returns its exit code."""
        os.kill(self.pid, number)
        self._process.join(STOP_SECONDS_MAX)
        return self._process.exitcode

    def log(self) -> str:
        return self.log_file.read_text()

    def client(self, patience_seconds: float = 0.0) -> Client:
        return Client(self.address, patience_seconds=patience_seconds)

    def status(self) -> pb.StatusReply:
        with self.client() as client:
            return client.status()

    def versions(self) -> list[pb.VersionRecord]:
        """All but version 0."""
        with self.client() as client:
            return client.versions(first=1)

    def drained(self) -> pb.StatusReply:
        """Wait until everything with a receipt has its verdict."""

        def nothing_queued() -> pb.StatusReply | None:
            status = self.status()
            return None if status.queued or status.commands_queued else status

        return until(nothing_queued, "the queue drains")

    def _has_address(self) -> bool:
        assert self.running, f"the coordinator ended: {self.log()[-2000:]}"
        return (self.home / "address").exists()


class CoordinatorHere(Coordinator):
    """The same in a thread of this process, which starts at once: for tests that kill nothing."""

    def __init__(self, home: Path, find_weights: FindWeights = lambda _: {}):
        super().__init__(home)
        self._find_weights = find_weights
        self._thread: threading.Thread | None = None

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        self._loop, self._asked_to_stop = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._serve, name="coordinator")
        self._thread.start()
        until(self._has_address, "the coordinator serves", START_SECONDS_MAX)
        self.address = (self.home / "address").read_text()
        self.port = int(self.address.rpartition(":")[2])

    def stop(self, number: int = signal.SIGINT) -> int:
        self._loop.call_soon_threadsafe(self._asked_to_stop.set)
        self._thread.join(STOP_SECONDS_MAX)
        return int(self.running)

    def log(self) -> str:
        return "it runs in this process"

    def _serve(self) -> None:
        with open_home(self.home) as home:
            serving = serve_home(
                home, self._asked_to_stop, "127.0.0.1", self.port, with_lineage=False, find_weights=self._find_weights
            )
            self._loop.run_until_complete(serving)
        self._loop.close()


def small_home(folder: Path, spec: pb.FederationSpec | None = None) -> Path:
    with open_home(folder, spec or small_spec()):
        return folder


def random_adapter(spec: pb.FederationSpec, seed: int, rank: int = 2) -> Adapter:
    """With a head for two labels."""
    g = torch.Generator().manual_seed(seed)
    factors = {
        m.name: Factors(torch.randn(m.out_features, rank, generator=g), torch.randn(rank, m.in_features, generator=g))
        for m in spec.modules
    }
    return Adapter(factors, {"classifier.weight": torch.randn(2, 6, generator=g)})


def scaled(adapter: Adapter, by: float) -> Adapter:
    """The same, so many times as loud."""
    return replace(adapter, factors={m: replace(f, B_NR=by * f.B_NR) for m, f in adapter.factors.items()})


def honest_blob(spec: pb.FederationSpec, adapter: Adapter, basis: Basis) -> bytes:
    return encode_update(append(basis, adapter, tolerance=spec.tolerance).update)


def honest_header(spec: pb.FederationSpec, blob: bytes, **changes: Any) -> pb.UpdateHeader:
    """Of an update made for version 0 by the first incarnation of a worker, unless changed."""
    fields = {
        "update_id": uuid.uuid4().hex,
        "federation_id": spec.federation_id,
        "worker": "raw",
        "incarnation": 1,
        "task": "task",
        "base_version": 0,
        "base_fingerprint": spec.base.fingerprint,
        "digest": digest_of(blob),
        "nbytes": len(blob),
        "labels": ["no", "yes"],
        "metrics": {"accuracy_when_learned": 0.5},
    }
    return pb.UpdateHeader(**{**fields, **changes})


def journal_one(home: Path, seed: int) -> pb.UpdateHeader:
    """A queued update on disk, from a member that joins for it."""
    with open_home(home) as opened:
        Catalog(opened.engine).ensure_root(opened.spec.federation_id, time.time())
        incarnation = Members(opened.engine).join("raw", "task", time.time())
        blob = honest_blob(opened.spec, random_adapter(opened.spec, seed), Basis())
        return journal_blob(opened, blob, incarnation=incarnation)


def journal_blob(home: Home, blob: bytes, **changes: Any) -> pb.UpdateHeader:
    """Receive an update made for version 0 as a coordinator does, with nobody there to merge it."""
    header = honest_header(home.spec, blob, **changes)
    receiver = receiver_of(home)
    assert receiver.expect(header) is None
    decision, repeated = receiver.accept(header, blob)
    assert decision.outcome == pb.OUTCOME_QUEUED and not repeated
    return header


def receiver_of(home: Home) -> Receiver:
    history = history_of(home)
    return Receiver(home.spec, history.journal, history.bases, home.blobs, lambda _: None)


def history_of(home: Home) -> History:
    return History.of(home.spec, home.engine, home.blobs)


def order(coordinator: Coordinator, command_id: str = "", **command: Any) -> pb.Verdict:
    """Give a command and wait for what becomes of it: order(coordinator, rollback=pb.Rollback(version=3))."""
    with coordinator.client() as client:
        return client.command(pb.CommandRequest(command_id=command_id or uuid.uuid4().hex, **command))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x10
    file.write_bytes(content)


class RawWorker:
    """A member that makes its updates by hand, and sees receipts as they are on the wire."""

    def __init__(
        self, address: str, worker: str = "raw", task: str = "task", weights: Mapping[str, torch.Tensor] = NO_TENSORS
    ):
        self.worker, self.task, self.weights = worker, task, weights
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 500)])
        self.stub = FederationStub(self._channel)
        self.client = Client(address, patience_seconds=WAIT_SECONDS_MAX)
        self.spec = self.client.describe()
        self.joined = self.join()

    def __enter__(self) -> RawWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self.client.__exit__()

    def join(self) -> pb.JoinReply:
        return self.client.join(self.worker, self.task, "", self.spec.base.fingerprint)

    def basis(self, version: int | None = None) -> tuple[int, Basis]:
        manifest, blobs = self.client.fetch(version)
        return manifest.version, decode_basis((blobs[ref.digest] for ref in manifest.blocks), self.weights)

    def blob(self, adapter: Adapter, base_version: int | None = None) -> tuple[int, bytes]:
        """(base version, an honest update's bytes)."""
        version, basis = self.basis(base_version)
        return version, honest_blob(self.spec, adapter, basis)

    def header(self, blob: bytes, base_version: int = 0, **changes: Any) -> pb.UpdateHeader:
        """An honest header, unless changed."""
        mine = {"worker": self.worker, "task": self.task, "incarnation": self.joined.incarnation}
        return honest_header(self.spec, blob, **{**mine, "base_version": base_version, **changes})

    def submit(self, header: pb.UpdateHeader, chunks: Iterator[bytes] | bytes) -> pb.Receipt:
        """Once, without any patience."""
        return self.stub.Submit(_parts(header, chunks), timeout=WAIT_SECONDS_MAX)

    def teach(self, adapter: Adapter, base_version: int | None = None, **changes: Any) -> pb.Receipt:
        """Submit an honest update; the receipt must say that it is queued."""
        base, blob = self.blob(adapter, base_version)
        receipt = self.submit(self.header(blob, base, **changes), blob)
        assert receipt.outcome == pb.OUTCOME_QUEUED, receipt
        return receipt


def _parts(header: pb.UpdateHeader, chunks: Iterator[bytes] | bytes) -> Iterator[pb.SubmitRequest]:
    yield pb.SubmitRequest(header=header)
    for chunk in cut(chunks) if isinstance(chunks, bytes) else chunks:
        yield pb.SubmitRequest(chunk=chunk)


def dense(manifest: pb.Manifest, blobs: Mapping[str, bytes], task: str) -> dict[str, np.ndarray]:
    """dW of every module of one task, read from the blobs with numpy alone (but columns that are derived)."""
    blocks = [columns_of(blobs[ref.digest]) for ref in manifest.blocks]
    [entry] = [safetensors.numpy.load(blobs[ref.entry.digest]) for ref in manifest.tasks if ref.task == task]
    found = {}
    for name in (key.removeprefix("P/") for key in entry if key.startswith("P/")):
        out, inn = (
            np.concatenate([b[f"{side}/{name}"] for b in blocks if f"{side}/{name}" in b], axis=1).astype(np.float64)
            for side in ("out", "in")
        )
        P, Q = entry[f"P/{name}"], entry[f"Q/{name}"]
        found[name] = (out[:, : len(P)] @ P) @ (inn[:, : len(Q)] @ Q).T
    return found


def columns_of(blob: bytes) -> dict[str, np.ndarray]:
    """A block's columns by side and module. Those that are derived are not in it, and are derived here."""
    if "derived" not in json.loads(metadata_of(blob).get("share_algo", "{}")):
        return safetensors.numpy.load(blob)
    sides = {m: {"out": d.out_NK, "in": d.in_DL} for m, d in decode_block(blob).items()}
    return {f"{side}/{m}": columns.numpy() for m, both in sides.items() for side, columns in both.items()}


def spans(manifest: pb.Manifest, blobs: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The projectors on every module's out and in basis."""
    blocks = [columns_of(blobs[ref.digest]) for ref in manifest.blocks]
    sides = sorted({key for block in blocks for key in block})
    columns = {
        side: np.concatenate([b[side] for b in blocks if side in b], axis=1).astype(np.float64) for side in sides
    }
    return {side: X @ X.T for side, X in columns.items()}


def dense_adapter(adapter: Adapter) -> dict[str, np.ndarray]:
    return {
        name: f.B_NR.numpy().astype(np.float64) @ f.A_RD.numpy().astype(np.float64)
        for name, f in adapter.factors.items()
    }


def relative_error(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """|| wanted - found || / || wanted || over all modules."""
    assert wanted.keys() == found.keys()
    lost = sum(np.square(wanted[m] - found[m]).sum() for m in wanted)
    return float(np.sqrt(lost / sum(np.square(w).sum() for w in wanted.values())))


@dataclass
class Led:
    """A worker's life that was led to its end in this process, and the stages it went through."""

    life: Life
    end: Progress
    stages: list[str]


def lead(plan: Plan, at: Mapping[str, Callable[[], object]] | None = None) -> Led:
    """Lead a life; `at` says what happens when it comes to a stage, each once."""
    from workers.life import Life

    stages, due = [], dict(at or {})

    def tell(progress: Progress) -> None:
        if stages[-1:] != [progress.stage]:
            stages.append(progress.stage)
            due.pop(progress.stage, lambda: None)()

    life = Life(plan, tell, lambda: False)
    return Led(life, life.lead(), stages)


@dataclass
class Walk:
    """Workers that are led one after the other against one coordinator."""

    coordinator: Coordinator
    tasks: Path
    homes: Path
    led: list[Led] = field(default_factory=list)

    def plan(self, task: str, **changes: Any) -> Plan:
        from workers.life import Plan

        plan = Plan(
            worker=f"{task}-worker",
            task=task,
            source=str(self.tasks / task),
            address=self.coordinator.address,
            home=self.homes / task,
            patience_seconds=2,
            threads=1,
        )
        return replace(plan, **changes)

    def lead(self, task: str, at: Mapping[str, Callable[[], object]] | None = None, **changes: Any) -> Led:
        return lead(self.plan(task, **changes), at)

    def measured(self, task: str, name: str) -> dict[int, float]:
        """What was reported for a task, by version."""
        with self.coordinator.client() as client:
            return {m.version: m.value for m in client.metrics(task) if m.name == name}


def sentences(key: str, labels: tuple[str, str], count: int) -> list[tuple[str, str]]:
    rng = random.Random(key)
    other = [w for w in WORDS if w not in labels]
    rows = []
    for i in range(count):
        words = rng.sample(other, 5)
        words.insert(rng.randrange(6), labels[i % 2])
        rows.append((" ".join(words), labels[i % 2]))
    return rows


def write_task_file(file: Path, rows: list[tuple[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([("text", "label"), *rows])


def federation_text(base: Path, tasks: Path, name: str = "tiny", epochs: int = 3, **subspace: object) -> str:
    """subspace: what its section says; without it the start is empty, and tasks begin as plain LoRA of rank 4."""
    said = subspace or {"start": "empty", "new_directions": 4}
    toml_lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in said.items())
    return f"""
name = "{name}"
seed = 3
[base]
model = "{base}"
[subspace]
rank = 4
{toml_lines}
[recipe]
epochs = {epochs}
batch_size = 16
tokens_max = 16
[data]
folder = "{tasks}"
"""
