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

import coordinator.upkeep
import workers.life
from protos.fedshare.v1 import federation_pb2 as pb
from workers.errors import CoordinatorAway, WorkerError
from workers.outbox import Parcel

from . import aims, federations, orders
from .disk import Disk
from .federations import SHARED, new_home
from .here import Answered, Database, Stuck
from .learned import Made, loudness
from .machines import Machines
from .points import POWER_CUT, Crash, Faults
from .short import HereWatcher, ShortLife

DRAIN_ROUNDS_MAX = 12
"""Lives that a worker may need, with no fault left to meet, to deliver what it has."""
DEPTH_MAX = 2
"""While one worker waits another may wait."""
ENTRIES_MAX = 200


@dataclass
class World(Machines):
    """All there is in a run. told: by update id, what somebody was told of it."""

    spec: pb.FederationSpec = field(default_factory=pb.FederationSpec)
    todo: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)  # whose, by folder: some workers have two
    made_by_digest: dict[str, Made] = field(default_factory=dict)
    parcels: dict[str, str] = field(default_factory=dict)  # digests by update id, of parcels that were finished
    told: dict[str, list[pb.Receipt]] = field(default_factory=dict)
    sent: list[list[pb.SubmitRequest]] = field(default_factory=list)
    commands: dict[str, pb.CommandRequest] = field(default_factory=dict)
    clock: float = 0.0
    depth: int = 0
    last_refusal: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for n in range(self.rng.randint(1, 3)):
            self.todo[f"w{n}"] = self.rng.randint(1, 4)
            self.tasks[f"w{n}"] = SHARED if self.rng.random() < 0.5 else f"task-{n}"
            for home in (f"w{n}", f"w{n + 10}")[: self.rng.randint(1, 2)]:
                (self.folder / home).mkdir()
                self.homes[home] = f"w{n}"

    # ---- what happens ----

    def run(self) -> None:
        """Faults for a while; then none, until everything has come to its end."""
        self._act(self.rng.randint(6, 14), self._actions())
        self._deliver()
        turns = self.rng.randint(4, 8) if aims.command_for(self.target) else self.rng.randint(0, 5)
        self._act(turns, [(self._order, 4), (self._integrate, 3), (self._restart, 1)])
        self._drain()

    def _act(self, turns: int, actions: list[tuple[Callable[[], None], int]]) -> None:
        self.quiet = False
        for _ in range(turns):
            aims.arm(self.faults, self.rng, self.target)
            self.rng.choices(*zip(*actions, strict=True))[0]()
        self.faults.due = self.faults.aim = None
        self.quiet, self.clock = True, 0.0

    def _actions(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self._live_one, 9), (self._integrate, 4), (self._send_again, 2), (self._order, 5),
            (self._jump, 1), (self._twin, 1), (self._restart, 1), (self._outage, 2), (self._rival, 1),
        ]  # fmt: skip

    def _deliver(self) -> None:
        for _ in range(DRAIN_ROUNDS_MAX):
            left = [home for home, worker in self.homes.items() if self._outbox(home) or self.todo[worker]]
            if not left:
                return
            for home in left:
                self._live(home)
        raise Stuck(f"{DRAIN_ROUNDS_MAX} lives each, and something is left to deliver: {self.last_refusal}")

    def _drain(self) -> None:
        """Also what was asked for and may have been lost on its way."""
        self._deliver()
        for command in self.commands.values():
            self.call("Command", command)
        self._integrate()
        self._restart()  # what is there is there after a restart
        self._integrate()

    def _live_one(self) -> None:
        self._live(self.rng.choice(list(self.homes)))

    def _live(self, home: str) -> None:
        worker = self.homes[home]
        life = ShortLife(self, worker, self.tasks[worker], self._home(home))
        try:
            life.lead()
        except Crash:
            self._bury_worker(home)
        except CoordinatorAway:
            self._must_not_be_quiet("the coordinator is away")
        except WorkerError as error:
            self._count("refused lives")
            self.last_refusal = str(error)

    def _integrate(self) -> None:
        self._count("integrations")
        with self._coordinator() as here:
            if here:
                entries = ENTRIES_MAX if self.quiet else self.rng.randint(1, 4)
                here.integrate(entries, tries=1 if self.quiet else 3)  # two faults may be due

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
        pieces = self._call_quietly("Quarantined", pb.QuarantinedRequest()) or []
        named = [one.update_id for aside in pieces for one in aside.updates]
        return orders.draw(self.rng, named, list(self.told), aims.command_for(self.target))

    def _jump(self) -> None:
        self._count("clock jumps")
        self.clock = self.rng.choice((-1e6, -3600.0, 0.0, 3600.0, 1e8))

    def _twin(self) -> None:
        """The same worker joins from elsewhere: the one here is an older incarnation from then on."""
        worker = self.rng.choice(list(self.tasks))
        self._call_quietly("Join", pb.JoinRequest(worker=worker, task=self.tasks[worker], base_fingerprint="f" * 64))

    def _outage(self) -> None:
        """Somebody's machine loses power while it does nothing."""
        self._kind = POWER_CUT
        self._count(POWER_CUT)
        if self.rng.random() < 0.7:
            self._bury_worker(self.rng.choice(list(self.homes)))
        else:
            self._database = Database(self._home_folder)
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
        """The head, or an older one: it may be gone by now, which is no trouble once all is quiet."""
        if self.rng.random() < 0.6:
            return None
        newest = 0 if self.quiet else max((r.version for told in self.told.values() for r in told), default=0)
        return self.rng.randint(0, newest)

    def loudness(self) -> float:
        often = 2 if aims.command_for(self.target) == "judge" else 1
        return loudness(self.rng, often)

    def next_seed(self) -> int:
        return self.seed * 1000 + len(self.made_by_digest)

    def made(self, digest: str, made: Made) -> None:
        self.made_by_digest[digest] = made

    def made_by(self, digest: str) -> Made:
        return self.made_by_digest[digest]

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

    # ---- small things ----

    def made_of(self, update_id: str) -> Made:
        """What an update taught, by what was sent for it."""
        [digest] = {r[0].header.digest for r in self.sent if r[0].header.update_id == update_id}
        return self.made_by(digest)

    def outboxes(self) -> list[Path]:
        return [path for home in self.homes for path in self._outbox(home)]

    def _outbox(self, home: str) -> list[Path]:
        outbox = self._home(home) / "outbox"
        return list(outbox.iterdir()) if outbox.exists() else []


def run(seed: int, template: Path, folder: Path, faults: Faults, loop: asyncio.AbstractEventLoop, target: str) -> World:
    """Raises AssertionError, or whatever else went wrong."""
    folder.mkdir()
    spec = new_home(template, folder / "home", federations.draw(Random(f"federation {seed}"), target))
    faults.disk = Disk()
    world = World(folder, seed, faults, loop, target, spec=spec)
    soon = patch.object(coordinator.upkeep, "slack", lambda kept: 1)
    with clock(world), soon, patch.object(workers.life, "Watcher", HereWatcher), faults.installed():
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
