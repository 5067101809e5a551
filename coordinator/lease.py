"""Who may write. One coordinator holds the lease of a store; others are refused, or stand by and take it over.

Safety      each holder's token is one more than the last's, and every transaction that writes checks that and who took
            it (fence.py): two can never both write to one database, whatever clocks, networks and stopped processes do.
Liveness    a holder has the lock that is numbered like its token, which the system takes from a dead process at once;
            and it adds 1 to `beats` every second. Who stands by takes over when it gets that lock, or has seen no beat
            for LEASE_SECONDS_MAX by its own monotonic clock (the holder hangs).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, insert, inspect, select, update
from sqlalchemy.exc import DBAPIError

from coordinator.database import fence_of, unfenced
from coordinator.errors import Fenced
from coordinator.fence import named, new_holder
from coordinator.locks import Locks
from coordinator.migrations import migrate
from coordinator.tables import lease, writer

log = logging.getLogger(__name__)

BEAT_SECONDS = 1.0
LEASE_SECONDS_MAX = 5.0
"""No beat for so long: the holder hangs."""
LOOK_SECONDS = 0.2
"""How often who stands by looks."""
SETTLE_SECONDS = 2.0
"""After the store itself was away its holder gets so long to come back before its lock is looked at."""


@dataclass(frozen=True)
class Seen:
    """What the store says of its holder; 0 where there was none yet."""

    token: int = 0
    holder: str = ""
    beats: int = 0


class Lease:
    """Held from `take` on, until another takes it."""

    def __init__(self, engine: Engine, locks: Locks, token: int):
        self._engine, self._locks, self._token = engine, locks, token
        self._writer = writer(engine, unsynced=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=self._beat, args=(ended,), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def let_go(self) -> None:
        self._locks.keep_only(None)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                self._locks.keep(self._token)
                with self._writer.begin() as connection:
                    connection.execute(update(lease).values(beats=lease.c.beats + 1))
            except Fenced:
                return
            except (DBAPIError, OSError) as error:
                log.debug("no beat: %s", error)  # whoever wants to write will say so


class Held(Exception):
    """By another coordinator, which the message names."""


def take(engine: Engine, locks: Locks, standby: bool) -> Lease:
    """Hold the lease, with this release's schema in the store; `standby`: as soon as nobody else does.

    Raises Held, with nothing changed, where another holds it and this is not to wait; NewerRelease.
    """
    watch = _Watch(engine, locks, standby)
    while not (token := watch.try_to_take()):
        if not standby:
            raise Held(named(watch.seen.holder) or "which is just starting")
        watch.wait()
    return Lease(engine, locks, token)


class _Watch:
    """The holder, as seen from here."""

    def __init__(self, engine: Engine, locks: Locks, standby: bool):
        self._engine, self._locks, self._standby = engine, locks, standby
        self.seen, self._since, self._settled = Seen(), time.monotonic(), 0.0
        self._said = False

    def try_to_take(self) -> int:
        """The token that is ours now; 0: it is somebody else's."""
        try:
            self._look()
            return self._taken() if self._is_free() or self._is_silent() else 0
        except (DBAPIError, OSError) as error:
            if not self._standby:
                raise
            log.debug("standing by: the store is away or busy: %s", error)
            self._since = time.monotonic()
            self._settled = self._since + SETTLE_SECONDS
            return 0

    def wait(self) -> None:
        if not self._said:
            log.info("standing by: the coordinator is %s", named(self.seen.holder) or "just starting")
            self._said = True
        time.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        seen = _read(self._engine)
        if seen != self.seen:
            self.seen, self._since = seen, time.monotonic()

    def _is_free(self) -> bool:
        return time.monotonic() >= self._settled and self._locks.hold(self.seen.token)

    def _is_silent(self) -> bool:
        return self._standby and time.monotonic() - self._since > LEASE_SECONDS_MAX

    def _taken(self) -> int:
        """Its lock first: from its commit on, who looks at the token must find that its holder lives."""
        mine = self.seen.token + 1
        won = False
        try:
            won = self._locks.hold(mine) and self._swapped(mine)
        finally:
            self._locks.keep_only(mine if won else None)
        return mine if won else 0

    def _swapped(self, mine: int) -> bool:
        try:
            with unfenced(self._engine, hurried=self._standby) as connection:
                migrate(connection)
                holder = _swap(connection, self.seen, mine)
        except _Beaten:
            return False
        fence = fence_of(self._engine)
        fence.token, fence.holder = mine, holder
        return True


class _Beaten(Exception):
    """The holder has given a sign of life since, or another has taken over: nothing is changed."""


def _read(engine: Engine) -> Seen:
    if not inspect(engine).has_table(lease.name):
        return Seen()
    with engine.connect() as connection:
        row = connection.execute(select(lease.c.token, lease.c.holder, lease.c.beats)).one_or_none()
    return Seen(*row) if row else Seen()


def _swap(connection: Connection, seen: Seen, mine: int) -> str:
    """Returns who holds it now. Raises _Beaten."""
    holder = new_holder()
    as_seen = (lease.c.token == seen.token, lease.c.holder == seen.holder, lease.c.beats == seen.beats)
    if seen.token:
        swapped = connection.execute(update(lease).where(*as_seen).values(token=mine, holder=holder)).rowcount
    else:
        swapped = connection.execute(select(lease.c.id)).first() is None
        if swapped:
            connection.execute(insert(lease).values(id=1, token=mine, holder=holder, beats=0))
    if not swapped:
        raise _Beaten
    return holder
