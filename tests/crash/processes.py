"""The walk over real gRPC between real processes, which are killed with SIGKILL at any instant and started again."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from unittest.mock import patch

from forks import forked
from google.protobuf import json_format
from parts import small_home, small_spec, until
from rich.progress import track

import coordinator.upkeep
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client

from . import federations
from .campaign import SHAPES
from .child import command, coordinate, lines, made_file, work
from .federations import SHARED
from .here import Here, new_loop
from .learned import Made
from .oracle import check
from .runs import ENTRIES_MAX

WORKERS = {"w0": SHARED, "w1": SHARED, "w2": "task-1"}
"""Each with its task."""
OPERATOR = "operator"
"""Who gives the commands."""
OTHERS = (*WORKERS, OPERATOR)
COORDINATORS_SHARE = 0.6
"""Of the kills; the others are theirs."""
PAUSE_SECONDS_MAX = 0.35
KILLS_A_RECEIPT = 3
"""Or the verdict on a command, in turns: on a slow machine nobody would come so far between two kills."""
DRAIN_SECONDS_MAX = 120.0


@dataclass
class Storm:
    """The processes, and what is known of them from the notes that they leave; read by the oracle like a World."""

    folder: Path
    rng: Random
    kills: dict[str, int] = field(default_factory=dict)
    running: dict[str, BaseProcess] = field(default_factory=dict)
    fenced: tuple[str, ...] = ()
    spec: pb.FederationSpec = field(default_factory=lambda: small_spec("storm", SHAPES))
    here: Here | None = None
    _made: dict[str, Made] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec.MergeFrom(_differs(self.rng))
        small_home(self.folder / "home", self.spec)
        self._start_coordinator(0)
        self.address = str(until(self._address, "the coordinator serves"))
        for name in OTHERS:
            self._start_other(name)

    def run(self, kills: int) -> None:
        """All is killed so often; then all may finish what they have begun."""
        for n in track(range(kills), "killing", disable=kills < 100):
            if n % KILLS_A_RECEIPT == 0:
                self._wait_for_one_more(WORKERS if n % 2 else (OPERATOR,))
            time.sleep(self.rng.uniform(0, PAUSE_SECONDS_MAX))
            self._kill_one()
        (self.folder / "stop").touch()
        for name in OTHERS:
            self.running[name].join(DRAIN_SECONDS_MAX)
            assert self.running[name].exitcode == 0, f"{name} does not come to an end"
        with Client(self.address, patience_seconds=30) as client:
            until(lambda: _is_idle(client.status()), "the queue drains", DRAIN_SECONDS_MAX)
        self.running["coordinator"].terminate()
        self.running["coordinator"].join(30)
        with self._coordinator() as here:  # what it owed itself when it was stopped
            here.integrate(ENTRIES_MAX, tries=1)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.join()
        if self.here:
            self.here.close()

    def _wait_for_one_more(self, names: Collection[str]) -> None:
        before = len(self._notes("told", names))
        until(lambda: len(self._notes("told", names)) > before, f"{names} are told something", DRAIN_SECONDS_MAX)

    def _kill_one(self) -> None:
        name = "coordinator" if self.rng.random() < COORDINATORS_SHARE else self.rng.choice(OTHERS)
        self.running[name].kill()
        self.running[name].join()
        self.kills[name] = self.kills.get(name, 0) + 1
        if name == "coordinator":
            self._start_coordinator(int(self.address.rpartition(":")[2]))
        else:
            self._start_other(name)

    def _start_coordinator(self, port: int) -> None:
        self._start("coordinator", coordinate, self.folder / "home", port, self.folder / "log")

    def _start_other(self, name: str) -> None:
        if name == OPERATOR:
            self._start(name, command, self.folder, name, self.address)
        else:
            self._start(name, work, self.folder, name, WORKERS[name], self.address)

    def _start(self, name: str, target: Callable[..., None], *args: object) -> None:
        self.running[name] = forked(target, *args, name=name)

    def _address(self) -> str:
        file = self.folder / "home" / "address"
        return file.read_text() if file.exists() else ""

    # ---- what the oracle asks ----

    @contextmanager
    def _coordinator(self) -> Iterator[Here]:
        if self.here is None:
            self.here = Here(self.folder / "home", new_loop())
        yield self.here

    @property
    def parcels(self) -> dict[str, str]:
        return {line: "" for line in self._notes("finished")}

    @cached_property
    def commands(self) -> dict[str, pb.CommandRequest]:
        given = [json_format.Parse(line, pb.CommandRequest()) for line in self._notes("commands")]
        return {request.command_id: request for request in given}

    @property
    def told(self) -> dict[str, list[pb.Receipt]]:
        told: dict[str, list[pb.Receipt]] = {}
        for line in self._notes("told"):
            update_id, *numbers = line.split()
            position, outcome, version = map(int, numbers)
            receipt = pb.Receipt(position=position, outcome=outcome, version=version)  # type: ignore[arg-type]
            told.setdefault(update_id, []).append(receipt)
        return told

    def made_of(self, update_id: str) -> Made:
        if update_id not in self._made:
            [(position, _)] = self.here.journal.find(update_id)
            self._made[update_id] = Made.read(made_file(self.folder, position.submission.digest))
        return self._made[update_id]

    def outboxes(self) -> list[Path]:
        return [path for worker in WORKERS for path in (self.folder / worker / "outbox").glob("*")]

    def wrong(self) -> list[str]:
        return self._notes("wrong")

    def _notes(self, what: str, names: Collection[str] = OTHERS) -> list[str]:
        return [line for name in names for line in lines(self.folder / f"{name}.{what}")]


def _is_idle(status: pb.StatusReply) -> bool:
    return not (status.queued or status.commands_queued)


def storm(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Raises AssertionError. Returns what there was."""
    os.environ["OMP_NUM_THREADS"] = "1"
    storm = Storm(folder, Random(seed))
    try:
        with patch.object(coordinator.upkeep, "slack", lambda kept: 1):  # as in the processes
            storm.run(kills)
            found = check(storm)
        assert storm.wrong() == []
    finally:
        storm.close()
    kills = {f"kills of {name}": n for name, n in sorted(storm.kills.items())}
    given = Counter(str(request.WhichOneof("command")) for request in storm.commands.values())
    return {
        **found,
        **kills,
        **{f"times {kind}": n for kind, n in given.items()},
        "receipts": len(storm._notes("told", WORKERS)),
        "refused": len(storm._notes("refused", WORKERS)),
    }


def _differs(rng: Random) -> pb.FederationSpec:
    """From the smallest federation: updates of the shared task are added up, and what is too loud is kept aside."""
    while True:
        spec = federations.draw(rng, "judge")
        if any(policy.kind != pb.POLICY_KIND_REPLACE for policy in spec.policies):
            return spec
