"""One seeded run: workers, a coordinator, and everything that can go wrong between and inside them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import grpc
from sqlalchemy.exc import SQLAlchemyError

import workers.life
from coordinator.errors import CoordinatorError
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter
from workers.errors import CoordinatorAway, WorkerError
from workers.outbox import Parcel

from .disk import Disk
from .here import Answered, Database, Here, Stuck, copy_home, log_of
from .points import COORDINATOR, DISK_FULL, KILL, POWER_CUT, WORKERS, Crash, Due, Faults
from .short import HereWatcher, ShortLife

DRAIN_ROUNDS_MAX = 12
"""Lives that a worker may need, with no fault left to meet, to deliver what it has."""
DEPTH_MAX = 2
"""While one worker waits another may wait."""
ENTRIES_MAX = 200
STEPS_MAX = 40
"""A life of a worker has so many durable steps."""


@dataclass(frozen=True)
class Made:
    """What one worker has learned once."""

    worker: str
    task: str
    adapter: Adapter


@dataclass
class World:
    """All there is in a run. told: by update id, what somebody was told of it."""

    folder: Path
    seed: int
    faults: Faults
    loop: asyncio.AbstractEventLoop
    target: str = ""
    rng: Random = field(init=False)
    here: Here | None = None
    quiet: bool = False
    todo: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    made_by_digest: dict[str, Made] = field(default_factory=dict)
    parcels: dict[str, str] = field(default_factory=dict)  # digests by update id, of parcels that were finished
    refused: dict[str, str] = field(default_factory=dict)  # why, by update id
    told: dict[str, list[pb.Receipt]] = field(default_factory=dict)
    sent: list[list[pb.SubmitRequest]] = field(default_factory=list)
    commands: dict[str, pb.CommandRequest] = field(default_factory=dict)
    clock: float = 0.0
    depth: int = 0
    last_refusal: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        for n in range(self.rng.randint(1, 3)):
            self.todo[f"w{n}"] = self.rng.randint(1, 3)
            (self.folder / f"w{n}").mkdir()
            self.tasks[f"w{n}"] = "shared" if self.rng.random() < 0.3 else f"task-{n}"
        self.faults.on_crash, self.faults.torn_commit = self._on_crash, lambda: log_of(self.folder / "home")
        self.faults.on_full = lambda: self._count(DISK_FULL)
        self.faults.tear = lambda before: self._database.tear(before, self.rng)

    # ---- what happens ----

    def run(self) -> None:
        """Faults for a while; then none, until everything has come to its end."""
        for _ in range(self.rng.randint(6, 16)):
            self._arm()
            self.rng.choices(*zip(*self._actions(), strict=True))[0]()
        self.faults.due = self.faults.aim = None
        self.quiet, self.clock = True, 0.0
        self._drain()

    def _actions(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self._live_one, 8), (self._integrate, 4), (self._send_again, 3), (self._order, 2),
            (self._jump, 1), (self._twin, 1), (self._restart, 1), (self._outage, 2),
        ]  # fmt: skip

    def _arm(self) -> None:
        if self.target and self.rng.random() < 0.3:
            self.faults.aim = Due(self.rng.choice((KILL, POWER_CUT, DISK_FULL)), point=self.target)
        if self.rng.random() < 0.8:
            kind = self.rng.choice((KILL, KILL, POWER_CUT, DISK_FULL))
            side = self.rng.choice((COORDINATOR, COORDINATOR, WORKERS))
            self.faults.due = Due(kind, self.rng.randint(1, STEPS_MAX), side=side)

    def _drain(self) -> None:
        for _ in range(DRAIN_ROUNDS_MAX):
            for worker in self.tasks:
                self._live(worker)
            if not self.outboxes() and not any(self.todo.values()):
                break
        else:
            raise Stuck(f"{DRAIN_ROUNDS_MAX} lives each, and something is left to deliver: {self.last_refusal}")
        for command in self.commands.values():
            self.call("Command", command)
        self._integrate()
        self._restart()  # what is there is there after a restart
        self._integrate()

    def _live_one(self) -> None:
        self._live(self.rng.choice(list(self.tasks)))

    def _live(self, worker: str) -> None:
        life = ShortLife(self, worker, self.tasks[worker], self._home(worker))
        try:
            life.lead()
        except Crash:
            self._bury_worker(worker)
        except CoordinatorAway:
            self._must_not_be_quiet("the coordinator is away")
        except WorkerError as error:
            self._note_refusal(worker, life, error)

    def _note_refusal(self, worker: str, life: ShortLife, error: WorkerError) -> None:
        if life.progress.stage == "refused":
            self.refused[life.progress.update_id] = str(error)
        self._count("refused lives")
        self.last_refusal = str(error)

    def _integrate(self) -> None:
        self._count("integrations")
        with self._coordinator() as here:
            if here:
                entries = ENTRIES_MAX if self.quiet else self.rng.randint(1, 4)
                here.integrate(entries, tries=1 if self.quiet else 2)

    def _send_again(self) -> None:
        """A request that was delayed on its way, or one that came twice."""
        if self.sent:
            self._count("requests sent again")
            self._told(self._call_quietly("Submit", self.rng.choice(self.sent)))

    def _order(self) -> None:
        again = self.commands and self.rng.random() < 0.3
        request = self.rng.choice(list(self.commands.values())) if again else self._new_command()
        self.commands[request.command_id] = request
        self._call_quietly("Command", request)

    def _new_command(self) -> pb.CommandRequest:
        request = pb.CommandRequest(command_id=f"{self.rng.getrandbits(128):032x}")
        if self.rng.random() < 0.6:
            request.rollback.version = self.rng.randint(0, 6)
        else:
            task, worker = self.rng.choice([("shared", ""), ("task-0", ""), ("", "w1"), ("task-1", "")])
            request.forget.CopyFrom(pb.Forget(task=task, worker=worker, erase=self.rng.random() < 0.5))
        return request

    def _jump(self) -> None:
        self._count("clock jumps")
        self.clock = self.rng.choice((-1e6, -3600.0, 0.0, 3600.0, 1e8))

    def _twin(self) -> None:
        """The same worker joins from elsewhere: the one here is an older incarnation from then on."""
        worker = self.rng.choice(list(self.tasks))
        self._call_quietly("Join", pb.JoinRequest(worker=worker, task=self.tasks[worker], base_fingerprint="f" * 64))

    def _restart(self) -> None:
        self._count("restarts")
        if self.here:
            self.here.close()
            self.here = None

    def _outage(self) -> None:
        """Somebody's machine loses power while it does nothing."""
        self._kind = POWER_CUT
        self._count(POWER_CUT)
        if self.rng.random() < 0.7:
            self._bury_worker(self.rng.choice(list(self.tasks)))
        else:
            self._database = Database(self.folder / "home")
            self._bury_coordinator()

    # ---- what workers ask ----

    def call(self, method: str, request: Any) -> Any:
        """Over a network that loses and doubles."""
        lost = self._chance(0.04)
        if lost:
            raise Answered(grpc.StatusCode.UNAVAILABLE, "lost on its way")
        reply = self._called(method, request)
        if method == "Submit":
            self.sent.append(request)
            self._told(reply)
            if self._chance(0.1):
                self._count("requests doubled")
                self._told(self._called(method, request))
        if self._chance(0.08):
            self._count("replies lost")
            raise Answered(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
        return reply

    def _called(self, method: str, request: Any) -> Any:
        with self._coordinator() as here:
            if here is None:
                raise Answered(grpc.StatusCode.UNAVAILABLE, "nobody is there")
            try:
                return here.call(method, request)
            except (Answered, Crash):
                raise
            except Exception as error:  # as gRPC does
                raise Answered(grpc.StatusCode.UNKNOWN, str(error)) from error
        raise Answered(grpc.StatusCode.UNAVAILABLE, "it has died")

    def _call_quietly(self, method: str, request: Any) -> Any:
        try:
            return self._called(method, request)
        except Answered:
            return None

    def notice(self) -> pb.VersionNotice:
        with self._coordinator() as here:
            if here:
                return here.notice()
        return pb.VersionNotice()

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Whoever waits lets others go on, and is killed sometimes."""
        self.depth += 1
        try:
            if not self.quiet and self.depth <= DEPTH_MAX and self.rng.random() < 0.5:
                self._live_one()
            if not self.quiet and self.rng.random() < 0.2:
                raise CoordinatorAway("it was stopped while it waited")
            self._integrate()
            if not (found := ready()):
                self._must_not_be_quiet("an update has no verdict although the writer is idle")
            return found
        finally:
            self.depth -= 1

    # ---- what a life makes ----

    def has_more(self, worker: str) -> bool:
        return self.todo[worker] > 0

    def base_version(self) -> int | None:
        return None if self.rng.random() < 0.7 else 0

    def next_seed(self) -> int:
        return self.seed * 1000 + len(self.made_by_digest)

    def made(self, digest: str, worker: str, task: str, adapter: Adapter) -> None:
        self.made_by_digest[digest] = Made(worker, task, adapter)

    def finished(self, parcel: Parcel) -> None:
        """From here on it may not be lost."""
        self.parcels[parcel.header.update_id] = parcel.header.digest
        self.todo[self.made_by_digest[parcel.header.digest].worker] -= 1

    def delivered(self, parcel: Parcel) -> None:
        assert parcel.header.update_id in self.told, "an update left the outbox without a receipt"

    def _told(self, receipt: pb.Receipt | None) -> None:
        if receipt is None or not receipt.position:
            return
        self.told.setdefault(receipt.update_id, []).append(receipt)

    # ---- who dies, and comes back ----

    @contextmanager
    def _coordinator(self) -> Iterator[Here | None]:
        """The one that runs, started if there is none. Its death ends the block: None from then on."""
        try:
            if self.here is None and (self.quiet or self.rng.random() < 0.8):
                self.here = self._started()
            yield self.here
        except Crash as crash:
            if crash.side != COORDINATOR:
                raise
            self._bury_coordinator()

    def _started(self) -> Here | None:
        try:
            return Here(self.folder / "home", self.loop)
        except (CoordinatorError, OSError, SQLAlchemyError) as error:
            self._must_not_be_quiet(f"the coordinator does not start: {error}")
            return None
        except Crash:
            self._bury_coordinator()
            return None

    def _on_crash(self, side: str, kind: str, point: str) -> None:
        self._count(kind)
        self._kind = kind
        if side == COORDINATOR:
            self._database = Database(self.folder / "home")

    def _bury_coordinator(self) -> None:
        if self.here:
            self.here.close()
            self.here = None
        if self.rng.random() < 0.5:
            self._database.add_garbage(self.rng)
        self._database.put_back()
        self.faults.dead.discard(COORDINATOR)
        home = self.folder / "home"
        if self._kind == POWER_CUT:
            self.faults.disk.power_cut(home, self.rng)
        if self.rng.random() < 0.3:
            (home / "blobs-arriving" / "tmptorn.part").write_bytes(self.rng.randbytes(40))

    def _bury_worker(self, worker: str) -> None:
        self.faults.dead.discard(WORKERS)
        if self._kind == POWER_CUT:
            self.faults.disk.power_cut(self._home(worker), self.rng)
        if self.rng.random() < 0.3:
            torn = self._home(worker) / "outbox" / f"{self.rng.getrandbits(128):032x}"
            torn.mkdir(parents=True, exist_ok=True)
            (torn / "update.safetensors").write_bytes(self.rng.randbytes(40))

    # ---- small things ----

    def _home(self, worker: str) -> Path:
        return self.folder / worker / "home"

    def made_of(self, update_id: str) -> Made:
        """What an update taught, by what was sent for it."""
        [digest] = {r[0].header.digest for r in self.sent if r[0].header.update_id == update_id}
        return self.made_by_digest[digest]

    def outboxes(self) -> list[Path]:
        return [path for worker in self.tasks for path in self._outbox(worker)]

    def _outbox(self, worker: str) -> list[Path]:
        outbox = self._home(worker) / "outbox"
        return list(outbox.iterdir()) if outbox.exists() else []

    def _chance(self, probability: float) -> bool:
        return not self.quiet and self.rng.random() < probability

    def _must_not_be_quiet(self, what: str) -> None:
        if self.quiet:
            raise Stuck(what)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def run(seed: int, template: Path, folder: Path, faults: Faults, loop: asyncio.AbstractEventLoop, target: str) -> World:
    """Raises AssertionError, or whatever else went wrong."""
    copy_home(template, folder / "home")
    faults.disk = Disk()
    world = World(folder, seed, faults, loop, target)
    with clock(world), patch.object(workers.life, "Watcher", HereWatcher), faults.installed():
        try:
            world.run()
        finally:
            faults.due = faults.aim = None
            faults.dead.clear()
        return world


@contextmanager
def clock(world: World) -> Iterator[None]:
    """The coordinator's clock jumps when the world says so."""
    real = time.time
    modules = [m for name, m in sys.modules.items() if name.startswith("coordinator.") and vars(m).get("time") is real]
    for module in modules:
        module.time = lambda: real() + world.clock  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.time = real  # type: ignore[attr-defined]
