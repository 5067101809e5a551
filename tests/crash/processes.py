"""The walk over real gRPC between real processes, which are killed with SIGKILL at any instant and started again."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random

from parts import small_home, small_spec, until
from rich.progress import track

from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client

from .campaign import SHAPES
from .child import coordinate, work
from .here import Here, new_loop
from .oracle import check
from .runs import Made
from .short import random_adapter

WORKERS = ("w0", "w1", "w2")
COORDINATORS_SHARE = 0.6
"""Of the kills; the others are workers'."""
PAUSE_SECONDS_MAX = 0.35
KILLS_A_RECEIPT = 3
"""On a slow machine nobody would come so far between two kills."""
DRAIN_SECONDS_MAX = 120.0


@dataclass
class Storm:
    """The processes, and what is known of them from the notes that they leave; read by the oracle like a World."""

    folder: Path
    rng: Random
    kills: dict[str, int] = field(default_factory=dict)
    running: dict[str, BaseProcess] = field(default_factory=dict)
    commands: dict[str, pb.CommandRequest] = field(default_factory=dict)
    fenced: tuple[str, ...] = ()
    spec: pb.FederationSpec = field(default_factory=lambda: small_spec("storm", SHAPES))
    here: Here | None = None

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([f"{__package__}.child"])
        small_home(self.folder / "home", self.spec)
        self._start_coordinator(0)
        self.address = str(until(self._address, "the coordinator serves"))
        for worker in WORKERS:
            self._start_worker(worker)

    def run(self, kills: int) -> None:
        """All is killed so often; then all may finish what they have begun."""
        for n in track(range(kills), "killing", disable=kills < 100):
            if n % KILLS_A_RECEIPT == 0:
                before = self._receipts()
                until(lambda before=before: self._receipts() > before, "a receipt comes", DRAIN_SECONDS_MAX)
            time.sleep(self.rng.uniform(0, PAUSE_SECONDS_MAX))
            self._kill_one()
        (self.folder / "stop").touch()
        for worker in WORKERS:
            self.running[worker].join(DRAIN_SECONDS_MAX)
            assert self.running[worker].exitcode == 0, f"{worker} does not come to an end"
        with Client(self.address, patience_seconds=30) as client:
            until(lambda: client.status().queued == 0, "the queue drains", DRAIN_SECONDS_MAX)
        self.running["coordinator"].terminate()
        self.running["coordinator"].join(30)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()
        if self.here:
            self.here.close()

    def _receipts(self) -> int:
        return sum(map(len, self.told.values()))

    def _kill_one(self) -> None:
        name = "coordinator" if self.rng.random() < COORDINATORS_SHARE else self.rng.choice(WORKERS)
        self.running[name].kill()
        self.running[name].join()
        self.kills[name] = self.kills.get(name, 0) + 1
        if name == "coordinator":
            self._start_coordinator(int(self.address.rpartition(":")[2]))
        else:
            self._start_worker(name)

    def _start_coordinator(self, port: int) -> None:
        self._start("coordinator", coordinate, self.folder / "home", port, self.folder / "log")

    def _start_worker(self, worker: str) -> None:
        self._start(worker, work, self.folder, worker, self.address)

    def _start(self, name: str, target: Callable[..., None], *args: object) -> None:
        self.running[name] = self._context.Process(target=target, args=args, name=name)
        self.running[name].start()

    def _address(self) -> str:
        file = self.folder / "home" / "address"
        return file.read_text() if file.exists() else ""

    # ---- what the oracle asks ----

    @contextmanager
    def _coordinator(self) -> Iterator[Here]:
        self._loop = new_loop()
        self.here = Here(self.folder / "home", self._loop)
        self._seeds = {p.submission.update_id: p.submission for p, _ in self.here.journal.every()}
        yield self.here

    @property
    def parcels(self) -> dict[str, str]:
        return {line: "" for worker in WORKERS for line in _lines(self.folder / f"{worker}.finished")}

    @property
    def told(self) -> dict[str, list[pb.Receipt]]:
        told: dict[str, list[pb.Receipt]] = {}
        for worker in WORKERS:
            for line in _lines(self.folder / f"{worker}.told"):
                update_id, *numbers = line.split()
                position, outcome, version = map(int, numbers)
                receipt = pb.Receipt(position=position, outcome=outcome, version=version)  # type: ignore[arg-type]
                told.setdefault(update_id, []).append(receipt)
        return told

    def made_of(self, update_id: str) -> Made:
        submission = self._seeds[update_id]
        adapter = random_adapter(self.spec, int(submission.metrics["seed"]), rank=1)
        return Made(submission.worker, submission.task, adapter, submission.base_version)

    def outboxes(self) -> list[Path]:
        return [path for worker in WORKERS for path in (self.folder / worker / "outbox").glob("*")]

    def wrong(self) -> list[str]:
        return [line for file in self.folder.glob("*.wrong") for line in _lines(file)]


def storm(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Raises AssertionError. Returns what there was."""
    os.environ["OMP_NUM_THREADS"] = "1"
    storm = Storm(folder, Random(seed))
    try:
        storm.run(kills)
        found = check(storm)
        assert storm.wrong() == []
    finally:
        storm.close()
    kills = {f"kills of {name}": n for name, n in sorted(storm.kills.items())}
    return {**found, **kills, "receipts": storm._receipts()}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
