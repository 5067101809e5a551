"""Locks that the system takes from a dead process at once: one for each token of a lease, numbered like it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

LOCKS = 0x0FED
"""Our first key among PostgreSQL's advisory locks; the second is the number."""


class Locks(Protocol):
    """Of one process."""

    def hold(self, number: int) -> bool:
        """Whether it is ours now; does not wait."""

    def keep(self, number: int) -> None:
        """Take it again if the store has lost it."""

    def keep_only(self, number: int | None) -> None:
        """Let go of all others."""


class FileLocks:
    """FOLDER/lock.NUMBER. The first, which nobody holds for long, is the FOLDER/lock of older releases."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: dict[int, FileLock] = {}

    def hold(self, number: int) -> bool:
        if number not in self._held:
            lock = FileLock(self._folder / (f"lock.{number}" if number else "lock"), thread_local=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return False
            self._held[number] = lock
        return True

    def keep(self, number: int) -> None:
        """The system does not lose it."""

    def keep_only(self, number: int | None) -> None:
        for other in set(self._held) - {number}:
            lock = self._held.pop(other)
            try:
                Path(lock.lock_file).unlink(missing_ok=True)
            finally:
                lock.release()


class AdvisoryLocks:
    """Of a session with PostgreSQL: a connection of their own, so that they end with it."""

    def __init__(self, engine: Engine):
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._held: set[int] = set()

    def hold(self, number: int) -> bool:
        if number not in self._held and self._asked("SELECT pg_try_advisory_lock(:locks, :number)", number):
            self._held.add(number)
        return number in self._held

    def keep(self, number: int) -> None:
        if self._connection is not None:
            self._asked("SELECT :locks = :number", number)
        self.hold(number)

    def keep_only(self, number: int | None) -> None:
        if number is None:
            return self._close()
        for other in self._held - {number}:
            self._asked("SELECT pg_advisory_unlock(:locks, :number)", other)
        self._held &= {number}

    def _asked(self, question: str, number: int) -> bool:
        """Raises DBAPIError, with nothing held any more, when the session is lost."""
        try:
            self._connection = self._connection or self._engine.connect()
            return self._connection.execute(text(question), {"locks": LOCKS, "number": number}).scalar_one()
        except DBAPIError:
            self._close()
            raise

    def _close(self) -> None:
        connection, self._connection, self._held = self._connection, None, set()
        if connection is not None:
            with suppress(DBAPIError):
                connection.invalidate()  # closes the session: a pooled one would go on holding them
                connection.close()
