"""The machines of a run: who runs on them, dies on them, hangs, comes back, and is replaced meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest.mock import patch

import grpc
from sqlalchemy.exc import SQLAlchemyError

import coordinator.lease
from coordinator.errors import CoordinatorError
from coordinator.home import open_home
from protos.fedshare.v1 import federation_pb2 as pb

from .here import Answered, Database, Here, Stuck, log_of
from .points import COORDINATOR, DISK_FULL, POWER_CUT, WORKERS, Crash, Faults

LOOKS_MAX = 100
"""How often one may look that stands by beside a holder that hangs."""


@dataclass
class Machines:
    """here: the coordinator that holds the lease. replaced: those that do not know yet that they have lost it."""

    folder: Path
    seed: int
    faults: Faults
    loop: asyncio.AbstractEventLoop
    target: str = ""
    rng: Random = field(init=False)
    here: Here | None = None
    replaced: list[Here] = field(default_factory=list)
    quiet: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    fenced: list[str] = field(default_factory=list)  # commands that were given to one that was replaced
    _kind: str = ""

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.faults.on_crash, self.faults.on_hang = self._on_crash, self._on_hang
        self.faults.torn_commit = lambda: log_of(self._home_folder)
        self.faults.on_full = lambda: self._count(DISK_FULL)
        self.faults.tear = lambda before: self._database.tear(before, self.rng)

    @property
    def _home_folder(self) -> Path:
        return self.folder / "home"

    # ---- the coordinator ----

    @contextmanager
    def _coordinator(self) -> Iterator[Here | None]:
        """The one that runs, started if there is none. Its death ends the block: None from then on."""
        try:
            if self.here is None and (self.quiet or self.rng.random() < 0.8):
                self.here = self._started()
            try:
                yield self.here
            finally:
                if COORDINATOR not in self.faults.dead:
                    self._end_replaced()
        except Crash as crash:
            if crash.side != COORDINATOR:
                raise
            self._bury_coordinator()

    def _started(self) -> Here | None:
        """Alone, or as one that stood by: whoever held the lease is dead."""
        try:
            if not self._chance(0.3):
                return Here(self._home_folder, self.loop)
            self._count("stood by")
            return self._stood_by()
        except (CoordinatorError, OSError, SQLAlchemyError) as error:
            self._must_not_be_quiet(f"the coordinator does not start: {error}")
            return None
        except Crash:
            self._bury_coordinator()
            return None

    def _stood_by(self) -> Here:
        """Looks until the lease is free, or nobody has beaten for long: time passes while it sleeps."""
        now, looks = [0.0], [0]

        def sleep(seconds: float) -> None:
            now[0] += seconds
            looks[0] += 1
            if looks[0] > LOOKS_MAX:
                raise Stuck("one that stands by does not come to hold the lease")

        with patch.object(coordinator.lease, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)):
            return Here(self._home_folder, self.loop, standby=True)

    def _rival(self) -> None:
        """Another on the same home: refused while the first lives, also where that stands still for a while."""
        if self.here is None:
            return
        self._count("rivals refused")
        try:
            open_home(self._home_folder).__exit__()
        except CoordinatorError as error:
            if "another coordinator" not in str(error):
                return self._must_not_be_quiet(str(error))  # a full disk
        except Crash:
            return self._bury_coordinator()
        else:
            raise AssertionError("two coordinators on one home")
        return None

    def _on_hang(self) -> bool:
        """The coordinator stands still in the middle of what it does, and one that stood by takes over and goes on."""
        old = self.here
        if old is None:
            return False
        self.replaced.append(old)
        self.here = None
        try:
            self.here = self._stood_by()
        except (CoordinatorError, OSError, SQLAlchemyError):
            return True  # one fault too many: nobody is there now
        self._count("takeovers")
        self.here.integrate(self.rng.randint(0, 4), tries=3)
        return True

    def _end_replaced(self) -> None:
        """It writes nothing more, whatever it is asked for, and ends."""
        while self.replaced:
            old = self.replaced.pop()
            try:
                self._must_be_fenced(old)
            finally:
                old.close()

    def _must_be_fenced(self, old: Here) -> None:
        if self.here is None:
            return
        version, consumed = self.here.catalog.head().version, self.here.journal.consumed()
        self.fenced.append(f"{self.rng.getrandbits(128):032x}")
        command = pb.CommandRequest(command_id=self.fenced[-1], rollback=pb.Rollback(version=0))
        try:
            old.call("Command", command)
        except Answered as answer:
            assert answer.code() == grpc.StatusCode.UNAVAILABLE, answer.details()
        else:
            raise AssertionError("one that was replaced goes on writing")
        old.integrate(2, tries=1)
        then = self.here.catalog.head().version, self.here.journal.consumed()
        assert then == (version, consumed), "one that was replaced goes on merging"

    def _on_crash(self, side: str, kind: str, point: str) -> None:
        self._count(kind)
        self._kind = kind
        if side == COORDINATOR:
            self._database = Database(self._home_folder)

    def _bury_coordinator(self) -> None:
        self.close()
        if self.rng.random() < 0.5:
            self._database.add_garbage(self.rng)
        self._database.put_back()
        self.faults.dead.discard(COORDINATOR)
        if self._kind == POWER_CUT:
            self.faults.disk.power_cut(self._home_folder, self.rng)
        if self.rng.random() < 0.3:
            (self._home_folder / "blobs-arriving" / "tmptorn.part").write_bytes(self.rng.randbytes(40))

    def _restart(self) -> None:
        self._count("restarts")
        if self.here:
            self.here.close()
            self.here = None

    # ---- workers ----

    def _bury_worker(self, home: str) -> None:
        self.faults.dead.discard(WORKERS)
        if self._kind == POWER_CUT:
            self.faults.disk.power_cut(self._home(home), self.rng)
        if self.rng.random() < 0.3:
            torn = self._home(home) / "outbox" / f"{self.rng.getrandbits(128):032x}"
            torn.mkdir(parents=True, exist_ok=True)
            (torn / "update.safetensors").write_bytes(self.rng.randbytes(40))

    def _home(self, home: str) -> Path:
        return self.folder / home / "home"

    # ---- small things ----

    def close(self) -> None:
        for one in (*self.replaced, self.here):
            if one:
                one.close()
        self.here, self.replaced = None, []

    def _chance(self, probability: float) -> bool:
        return not self.quiet and self.rng.random() < probability

    def _must_not_be_quiet(self, what: str) -> None:
        if self.quiet:
            raise Stuck(what)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
