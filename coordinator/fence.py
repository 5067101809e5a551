"""The fencing token: who is not the one that took the lease last may write nothing more, whatever it believes."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable

from sqlalchemy import Connection, select

from coordinator.errors import Fenced
from coordinator.tables import lease

_ROW = select(lease.c.token, lease.c.holder).with_for_update()
"""Locked until the transaction ends: nobody takes over before its commit. SQLite's writers are alone anyway."""
_DRAWN = " #"
"""Before what each holder has drawn: a database that falls back to an older state gives the same token twice."""


def new_holder() -> str:
    """This process, as no other holder is ever called."""
    return f"process {os.getpid()} on {socket.gethostname()}{_DRAWN}{secrets.token_hex(8)}"


def named(holder: str) -> str:
    """As it is called in a sentence."""
    return holder.partition(_DRAWN)[0]


class Fence:
    """Of one process and one store; `check` comes first in every transaction that writes."""

    def __init__(self) -> None:
        self.token, self.holder = 0, ""
        self.lost, self.why = threading.Event(), ""
        self._tell: Callable[[], object] = lambda: None

    def when_lost(self, tell: Callable[[], object]) -> None:
        """Call `tell`, from any thread, as soon as it is known that another has taken over."""
        self._tell = tell
        if self.lost.is_set():
            tell()

    def check(self, connection: Connection) -> None:
        """Raises Fenced."""
        row = connection.execute(_ROW).one_or_none()
        if (tuple(row) if row else (0, "")) == (self.token, self.holder):
            return
        self.why = f"another coordinator ({named(row.holder) if row else 'unknown'}) has taken over: this one has ended"
        self.lost.set()
        self._tell()
        raise Fenced(self.why)
