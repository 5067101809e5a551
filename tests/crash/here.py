"""A coordinator in this process, with real files and a real database, and calls to it without a socket.

All of its own code runs but the listening: the service, receive, journal, integrate, catalog, blobs, sweep. Everything
is done by one thread, in the caller's turn, so that a seed is enough to do it again.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from time import time
from typing import Any, NoReturn

import grpc

from coordinator.blob_place import MARK, OWN
from coordinator.broadcast import Broadcast
from coordinator.history import History
from coordinator.home import open_home
from coordinator.integrate import Announcement, Integrator
from coordinator.lineage import LineageOff
from coordinator.measured import Measured
from coordinator.members import Members
from coordinator.receive import Receiver
from coordinator.service import Service
from protos.fedshare.v1 import federation_pb2 as pb

DATABASE = ("journal.sqlite", "journal.sqlite-wal")
RETRIES_MAX = 3
"""How often in a row the writer may fail to store, with no fault left to meet."""


class Stuck(AssertionError):
    """It does not go on although nothing is in its way."""


class Inline(ThreadPoolExecutor):
    """Does what it is given at once, in the caller's thread."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*args, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


def new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(Inline(1))
    return loop


class Answered(grpc.RpcError):
    """What a caller of gRPC would see."""

    def __init__(self, code: grpc.StatusCode, details: str):
        super().__init__(details)
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


class Context:
    def __init__(self) -> None:
        self.written: list[Any] = []

    async def write(self, reply: Any) -> None:
        self.written.append(reply)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Answered(code, details)


class Here:
    """One process of a coordinator: opened on a home, until it is closed or dies."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, *, standby: bool = False):
        self.folder, self._loop = folder, loop
        self.home = open_home(folder, standby=standby)
        try:
            self._wire()
        except BaseException:
            self.close()
            raise

    def _wire(self) -> None:
        home = self.home
        self.history = History.of(home.spec, home.engine, home.blobs)
        self.catalog, self.journal = self.history.catalog, self.history.journal
        self.history.begin(time())
        self.integrator = Integrator(home.spec, home.engine, self.history, self._announce)
        self.broadcast = Broadcast(self.integrator.announcement, self._loop)
        receiver = Receiver(home.spec, self.journal, self.history.bases, home.blobs, self.integrator.wake)
        members, measured = Members(home.engine), Measured(home.engine)
        self.service = Service(home.spec, members, self.history, measured, receiver, self.broadcast, LineageOff())

    def close(self) -> None:
        """Whether it ends well or dies: its lock is free, its database is closed."""
        self.home.engine.dispose()
        self.home.lease.let_go()

    def call(self, method: str, request: Any) -> Any:
        return self._loop.run_until_complete(self._call(method, request))

    async def _call(self, method: str, request: Any) -> Any:
        answer = getattr(self.service, method)
        if method == "Submit":
            return await answer(_sent(request), Context())
        if inspect.isasyncgenfunction(answer):
            return [reply async for reply in answer(request, Context())]
        context = Context()
        reply = await answer(request, context)
        return context.written if reply is None else reply

    def notice(self) -> pb.VersionNotice:
        """What a watcher gets first."""

        async def first() -> pb.VersionNotice:
            await asyncio.sleep(0)  # what was announced meanwhile comes first
            return await anext(self.service.Watch(pb.WatchRequest(), Context()))

        return self._loop.run_until_complete(first())

    def integrate(self, entries: int, tries: int) -> None:
        """Let the writer's own loop go on for so many turns, or until there is nothing to do."""
        turns = _Turns(entries, tries)
        self.integrator._stopping, self.integrator._wake = turns, turns  # type: ignore[assignment]
        self.integrator._run()
        if turns.failed >= tries:
            raise Stuck(f"the writer failed {turns.failed} times in a row")

    def _announce(self, announcement: Announcement) -> None:
        """Durable before visible: what is announced is on the disk."""
        assert self.catalog.head().version >= announcement.head.version, "a head is announced before it is stored"
        assert self.journal.consumed() >= announcement.consumed, "a verdict is announced before it is stored"
        self.broadcast.announce(announcement)


class _Turns:
    """Stands where the writer asks whether to stop, and where it waits."""

    def __init__(self, entries: int, tries: int):
        self._left, self._tries, self.failed, self._idle = entries, tries, 0, False

    def is_set(self) -> bool:
        self._left -= 1
        return self._idle or self._left < 0 or self.failed >= self._tries

    def wait(self, seconds: float) -> None:
        if seconds < 5.0:  # RETRY_SECONDS: it could not store; else it is idle
            self.failed += 1
        else:
            self._idle = True

    def set(self) -> None: ...

    def clear(self) -> None: ...


async def _sent(requests: Iterable[pb.SubmitRequest]) -> AsyncIterator[pb.SubmitRequest]:
    for request in requests:
        yield request


class Database:
    """The files of a database as they were when its process died: SQLite tidies them up when it is closed here."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._then = self.now()

    def now(self) -> dict[str, bytes]:
        return {name: f.read_bytes() for name in DATABASE if (f := self._folder / name).exists()}

    def tear(self, log_before: bytes, rng: Random) -> None:
        """Of what was written to the log since, some has reached the disk, in order."""
        log = self._then.get(DATABASE[1], b"")
        changed = [n for n in range(len(log)) if n >= len(log_before) or log[n] != log_before[n]]
        if not changed:
            return
        cut = rng.randint(changed[0], changed[-1])
        self._then[DATABASE[1]] = log[:cut] + log_before[cut:]

    def add_garbage(self, rng: Random) -> None:
        """Pages that belonged to no commit."""
        if DATABASE[1] in self._then:
            self._then[DATABASE[1]] += rng.randbytes(rng.randint(1, 5000))

    def put_back(self) -> None:
        for name in (*DATABASE, "journal.sqlite-shm"):
            (self._folder / name).unlink(missing_ok=True)
        for name, content in self._then.items():
            (self._folder / name).write_bytes(content)


def log_of(folder: Path) -> bytes:
    log = folder / DATABASE[1]
    return log.read_bytes() if log.exists() else b""


def copy_home(template: Path, folder: Path) -> None:
    """As its first start finds it: the mark of its blobs is on no disk yet."""
    shutil.copytree(template, folder, copy_function=shutil.copyfile)
    for torn in ("lock", "address", f"{OWN}/{MARK}"):
        if (folder / torn).exists():
            os.remove(folder / torn)
