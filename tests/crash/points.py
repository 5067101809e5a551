"""Crash points: before and after each step that touches a disk, named by the function that takes it.

Nothing in the code says where they are. While a Faults is installed, calls of the rooms that change files, fsync
them, or commit, are noticed; "coordinator: shelves.Folder.put, before rename *.safetensors" is one.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from coordinator.tables import Writer

from .disk import Disk, path_of

COORDINATOR, WORKERS = "coordinator", "workers"
STEPS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir")
HELPERS = ("write", "sync_folder", "make_folder")
"""Functions that say nothing about whose step it is."""
NEEDS_ROOM = re.compile("before (fsync|rename|replace|mkdir|commit)|after commit")
"""Where a full disk shows. After a commit: it came through, and whoever made it is told that it did not."""
KILL, POWER_CUT, DISK_FULL, HANG = "kill", "power cut", "disk full", "hang"
OWN_TURN = re.compile("commit|home\\.open_home|Folder\\.__init__")
"""Where another cannot take over from one that hangs: it holds the database, or has only just come."""


class Crash(BaseException):
    """The end of a process, as its code sees it: nothing catches it."""

    def __init__(self, side: str):
        super().__init__(side)
        self.side = side


@dataclass
class Due:
    """After so many points more of a side, or (an aim) when it comes to the point of that name; then the next one."""

    kind: str
    steps: int = 0
    point: str = ""
    side: str = ""
    then: Due | None = None


@dataclass
class Faults:
    """reached, crashed: how often each point. dead: sides that have crashed, whose code may do nothing any more."""

    on_crash: Callable[[str, str, str], None] = lambda side, kind, point: None
    on_full: Callable[[], None] = lambda: None
    on_hang: Callable[[], bool] = lambda: False
    torn_commit: Callable[[], bytes] = bytes
    tear: Callable[[bytes], None] = lambda before: None
    reached: Counter[str] = field(default_factory=Counter)
    crashed: Counter[str] = field(default_factory=Counter)
    dead: set[str] = field(default_factory=set)
    due: Due | None = None
    aim: Due | None = None
    disk: Disk = field(default_factory=Disk)

    @contextmanager
    def installed(self) -> Iterator[Faults]:
        watched = {step: self._watched(step, getattr(os, step)) for step in STEPS}
        with patch.multiple(os, **watched), patch.object(Writer, "begin", self._begin(Writer.begin)):
            yield self

    def point(self, where: Place, what: str) -> None:
        name = f"{where.side}: {where.function}, {what}"
        if where.side in self.dead:
            raise Crash(where.side)
        self.reached[name] += 1
        if self._is_due(name, where.side):
            self._happen(name, where.side, what)

    def _is_due(self, name: str, side: str) -> bool:
        if self.aim and name == self.aim.point:
            self.due, self.aim = self.aim, self.aim.then
            return True
        if self.due is None or self.due.side != side:
            return False
        self.due.steps -= 1
        return self.due.steps <= 0

    def _happen(self, name: str, side: str, what: str) -> None:
        assert self.due is not None
        kind = self.due.kind
        if kind == DISK_FULL and not NEEDS_ROOM.match(what):
            return  # it waits for the next step
        if kind == HANG:
            self._hang(name)
            return
        self.due = None
        self.crashed[name] += 1
        if kind == DISK_FULL:
            self.on_full()
            raise _no_room("commit" in what)
        self.dead.add(side)
        self.on_crash(side, kind, name)
        raise Crash(side)

    def _hang(self, name: str) -> None:
        due, self.due = self.due, None
        if OWN_TURN.search(name) or not self.on_hang():
            self.due = due

    def _watched(self, step: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **named: Any) -> Any:
            where = place(sys._getframe(1))
            if where is None:
                return original(*args, **named)
            path = path_of(args[0], named.get("dir_fd"))
            to = Path(args[1]) if step in ("rename", "replace") else path
            what = f"{step} {common(to)}"
            self.point(where, f"before {what}")
            with self.disk.noting(step, path, to):
                result = original(*args, **named)
            self.point(where, f"after {what}")
            return result

        return act

    def _begin(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def begin(writer: Writer) -> Iterator[Connection]:
            where = place(sys._getframe(2))
            if where is None:
                with original(writer) as connection:
                    yield connection
                return
            where = replace(where, function=where.function + _errand(sys._getframe(2)))
            with original(writer) as connection:
                yield connection
                self.point(where, "before commit")
                torn = self._tears(where)
            if torn is not None:
                torn()
            self.point(where, "after commit")

        return begin

    def _tears(self, where: Place) -> Callable[[], None] | None:
        """A crash inside the commit: some of its pages are on the disk."""
        name = f"{where.side}: {where.function}, inside commit"
        self.reached[name] += 1
        if not self._is_due(name, where.side) or (self.due and self.due.kind in (DISK_FULL, HANG)):
            return None
        before = self.torn_commit()

        def torn() -> None:
            assert self.due is not None
            kind, self.due = self.due.kind, None
            self.crashed[name] += 1
            self.dead.add(where.side)
            self.on_crash(where.side, kind, name)
            self.tear(before)
            raise Crash(where.side)

        return torn


@dataclass(frozen=True)
class Place:
    """side: the room. function: the innermost one of it that has a public name."""

    side: str
    function: str


def place(frame: FrameType | None) -> Place | None:
    side, best = "", ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("filelock") or (not side and "crash." in module):
            return None  # a lock says nothing; what this harness does itself is no step
        if module == "coordinator.locks":
            return None  # nothing durable: the system takes a lock from the dead
        room = module.partition(".")[0]
        if not side and room in (COORDINATOR, WORKERS):
            side = room
        if side and room == side and _is_public(frame.f_code.co_name) and module != "coordinator.together":
            return Place(side, f"{module.partition('.')[2]}.{frame.f_code.co_qualname}")
        if side and not best and room == side:
            best = f"{module.partition('.')[2]}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return Place(side, best) if side else None


def _errand(frame: FrameType | None) -> str:
    """What command a version or a verdict is stored for."""
    stores = False
    while frame is not None:
        name = frame.f_code.co_qualname
        stores |= name in ("Catalog.publish", "Catalog.settle")
        if name == "Integrator._merge":
            return ""
        if stores and name == "Integrator._carry_out":
            return f" for a {frame.f_locals['command'].WhichOneof('command')}"
        frame = frame.f_back
    return ""


def _is_public(name: str) -> bool:
    return name in ("__init__", "__enter__") or not (name.startswith(("_", "<")) or name in HELPERS)


def common(path: Path) -> str:
    """A file's name, without what differs from one to the next."""
    name = re.sub(r"[0-9a-f]{32,64}", "*", path.name)
    name = re.sub(r"^\*\.\d+\.safetensors$", "*.*.safetensors", name)  # of a later edition
    name = re.sub(r"^(\d+|w\d+)$", "*", name)  # the folder of a run, or of a worker
    return re.sub(r"^tmp[a-z0-9_]+\.part$", "*.part", name)


def _no_room(in_database: bool) -> Exception:
    if in_database:
        return OperationalError("COMMIT", None, sqlite3.OperationalError("database or disk is full"))
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
