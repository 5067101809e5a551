"""What runs in the processes that are killed: a coordinator, workers that learn random adapters, who gives commands.

Forked from a server that has imported this, so that they are there at once. What they know they write down.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from pathlib import Path
from random import Random

import torch
from google.protobuf import json_format

import coordinator.upkeep
from coordinator.process import serve
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client
from workers.errors import Refusal, WorkerError
from workers.outbox import Parcel

from . import orders
from .learned import Made, loudness
from .short import PATIENCE_SECONDS, ShortLife

PAUSE_SECONDS_MAX = 0.3
"""Between commands."""
BACK_MAX = 8
"""So many versions a rollback goes back at most."""


def coordinate(home: Path, port: int, log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO)
    coordinator.upkeep.slack = lambda kept: 1
    serve(home, None, host="127.0.0.1", port=port, lineage=False)


def work(folder: Path, worker: str, task: str, address: str) -> None:
    """Learn and deliver, until there is a file `stop`; then deliver what is left."""
    torch.set_num_threads(1)
    notes = Notes(folder, worker)
    while not (folder / "stop").exists() or list((folder / worker / "outbox").glob("*")):
        try:
            StormLife(notes, worker, task, folder / worker, address).lead()
        except WorkerError as error:
            notes.add("errors", str(error))
            time.sleep(0.05)
        except AssertionError as error:  # the function kept is not the one learned
            return notes.add("wrong", f"{worker}: {error!r}, {traceback.format_exc()!r}")


def command(folder: Path, name: str, address: str) -> None:
    """Commands one after the other, each until its verdict is known, until there is a file `stop`."""
    notes = Notes(folder, name)
    while (request := notes.open_command()) or not (folder / "stop").exists():
        try:
            with Client(address, patience_seconds=PATIENCE_SECONDS) as client:
                if request is None:
                    request = _drawn(client, notes)
                    notes.add("commands", json_format.MessageToJson(request, indent=None))
                notes.told(client.command(request))
        except WorkerError as error:
            notes.add("errors", str(error))
        time.sleep(Random().uniform(0, PAUSE_SECONDS_MAX))


def _drawn(client: Client, notes: Notes) -> pb.CommandRequest:
    head, aside = client.status().head, [one.update_id for one in client.quarantined()]
    sent = [line for file in notes.folder.glob("*.finished") for line in lines(file)]
    return orders.draw(Random(), aside, sent, versions=range(max(0, head - BACK_MAX), head + 2))


class Notes:
    """What one of them has made, asked for and been told. Stands where a ShortLife asks the world of its run."""

    def __init__(self, folder: Path, name: str):
        self.folder, self._name = folder, name
        (folder / "made").mkdir(exist_ok=True)

    def add(self, what: str, line: str) -> None:
        """One line more, whole or not at all; whoever writes it may be killed at any time."""
        handle = os.open(self._file(what), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)

    def told(self, said: pb.Receipt | pb.Verdict) -> None:
        self.add("told", f"{said.update_id} {said.position} {said.outcome} {said.version}")

    def open_command(self) -> pb.CommandRequest | None:
        """The last one that was given, where its verdict is not known."""
        asked = lines(self._file("commands"))
        if not asked:
            return None
        last = json_format.Parse(asked[-1], pb.CommandRequest())
        return None if any(line.startswith(last.command_id) for line in lines(self._file("told"))) else last

    def _file(self, what: str) -> Path:
        return self.folder / f"{self._name}.{what}"

    # ---- what a life asks ----

    def has_more(self, worker: str) -> bool:
        return True

    def base_version(self) -> None:
        """The head."""

    def loudness(self) -> float:
        return loudness(Random())

    def next_seed(self) -> int:
        return Random().getrandbits(40)

    def made(self, digest: str, made: Made) -> None:
        made.write(made_file(self.folder, digest))

    def made_by(self, digest: str) -> Made:
        return Made.read(made_file(self.folder, digest))

    def finished(self, parcel: Parcel) -> None:
        self.add("finished", parcel.header.update_id)

    def delivered(self, parcel: Parcel) -> None: ...


class NotingClient(Client):
    """Keeps every receipt that it gets, and which updates were refused."""

    notes: Notes

    def submit(self, header: pb.UpdateHeader, blob: bytes) -> pb.Receipt:
        try:
            receipt = super().submit(header, blob)
        except Refusal:  # made for a version that is gone
            self.notes.add("refused", header.update_id)
            raise
        self.notes.told(receipt)
        return receipt


class StormLife(ShortLife):
    """Over real gRPC. Ends when it has delivered what it has: one update, or what was left from the life before."""

    def _client(self) -> Client:
        client = NotingClient(self.plan.address, patience_seconds=self.plan.patience_seconds)
        client.notes = self._world  # type: ignore[assignment]
        return client


def made_file(folder: Path, digest: str) -> Path:
    return folder / "made" / f"{digest}.safetensors"


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
