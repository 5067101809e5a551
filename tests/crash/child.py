"""What runs in the processes that are killed: a coordinator, and a worker whose learning is a random adapter.

Forked from a server that has imported this, so that they are there at once.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from parts import FINGERPRINT, dense, dense_adapter, honest_blob, random_adapter, relative_error

from coordinator.process import serve
from protos.chunks import digest_of
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client
from workers.errors import WorkerError
from workers.life import Life, Plan
from workers.outbox import Parcel
from workers.tasks import TaskData

LABELS = ("no", "yes")
SENT_IS_KEPT = 1e-4
PATIENCE_SECONDS = 60.0


def coordinate(home: Path, port: int, log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO)
    serve(home, None, host="127.0.0.1", port=port, lineage=False)


def work(folder: Path, worker: str, address: str) -> None:
    """Learn and deliver, until there is a file `stop`; then deliver what is left."""
    torch.set_num_threads(1)
    while not (folder / "stop").exists() or list((folder / worker / "outbox").glob("*")):
        try:
            StormLife(folder, worker, address).lead()
        except WorkerError as error:
            note(folder / f"{worker}.errors", str(error))
            time.sleep(0.05)


def note(file: Path, line: str) -> None:
    """One line more, whole or not at all; whoever writes it may be killed at any time."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(handle, f"{line}\n".encode())
    finally:
        os.close(handle)


class NotingClient(Client):
    """Keeps every receipt that it gets."""

    told: Path

    def submit(self, header: pb.UpdateHeader, blob: bytes) -> pb.Receipt:
        receipt = super().submit(header, blob)
        note(self.told, f"{receipt.update_id} {receipt.position} {receipt.outcome} {receipt.version}")
        return receipt


class StormLife(Life):
    """Ends when it has delivered what it has: one update, or what was left from the life before."""

    base = SimpleNamespace(fingerprint=FINGERPRINT)  # type: ignore[assignment]

    def __init__(self, folder: Path, worker: str, address: str):
        plan = Plan(worker, f"{worker}-task", "", address, folder / worker, learn_again=True)
        super().__init__(plan, lambda progress: None, lambda: False)
        self._notes = folder / worker

    @property
    def task(self) -> TaskData:  # type: ignore[override]
        return TaskData(self.plan.task, LABELS, (), ())

    def _client(self) -> Client:
        client = NotingClient(self.plan.address, patience_seconds=PATIENCE_SECONDS)
        client.told = self._notes.with_suffix(".told")
        return client

    def _learn(self) -> Parcel:
        manifest, basis = self._fetch(None)
        seed = Random().getrandbits(40)
        blob = honest_blob(self.spec, random_adapter(self.spec, seed, rank=1), basis)
        parcel = self.home.outbox.put(
            self.plan.task, manifest.version, blob, digest_of(blob), LABELS, {"seed": float(seed)}, torch.zeros(1)
        )
        note(self._notes.with_suffix(".finished"), parcel.header.update_id)
        return parcel

    def _evaluate(self, version: int, measured: Any = None, trained: Any = None) -> None:
        """The function kept is the one learned."""
        manifest, blobs = self.client.fetch(version, tasks=[self.plan.task])
        adapter = random_adapter(self.spec, int(measured["seed"]), rank=1)
        error = relative_error(dense_adapter(adapter), dense(manifest, blobs, self.plan.task))
        if error > SENT_IS_KEPT:
            note(self._notes.with_suffix(".wrong"), f"version {version} is off by {error}")

    def _follow(self) -> None:
        """Nothing to measure later versions with."""
