"""Where a store's blobs lie is written in its database: who starts a coordinator without saying it finds them there.

What lies inside the folder of a home whose database is a file of that folder is named from there: such a home may be
moved, or copied. Whatever else is local has its whole path; a URL is kept without a password.

The place itself says whose it is, as a sweep deletes there whatever its own federation does not name: in an object
beside the blobs, which none has the name of. It is written after the federation's row: a crash in between leaves a
federation that marks its place at the next start, like one of an older release, and no mark of one that is not there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, insert, select, update

from coordinator import tables
from coordinator.database import fence_of
from coordinator.errors import CoordinatorError
from coordinator.letting_go import SWEEP_WANTED
from coordinator.shelves import digests_at, folder_at, read_at, shelf_at, without_password
from coordinator.sweep import named

log = logging.getLogger(__name__)

OWN = "blobs"
"""The folder in a home, where nobody says otherwise."""
MARK = "federation"
"""What it is called at the place that says which federation's blobs are there; copied with them, it is still true."""
EDITION = "edition of blobs: "
"""How the cursors are named that say which editions of names there are (blobs.py)."""


@dataclass(frozen=True)
class BlobPlace:
    """name: what the store is called in a sentence. said: --blobs. is_shared: the database is no file of this home."""

    name: str
    home: Path
    said: str
    is_shared: bool

    @property
    def wanted(self) -> str:
        return self.said or str(self.home / OWN)

    @property
    def to_record(self) -> str:
        folder = folder_at(self.wanted)
        if folder is None:
            return without_password(self.wanted).rstrip("/")
        real, home = Path(os.path.realpath(folder)), os.path.realpath(self.home)
        if not self.is_shared and real.is_relative_to(home):
            return str(real.relative_to(home))
        return os.path.abspath(folder)

    def must_be_free(self) -> None:
        """For a federation that is to be made. Raises CoordinatorError, with nothing changed."""
        whose = self._mark_at(self.wanted)
        if whose or self._digests():
            holds = "the blobs of another federation" if whose else "blobs already, and does not say whose they are"
            other = "" if self.said else "use another --home, or "
            raise CoordinatorError(
                f"{without_password(self.wanted)} holds {holds}: {other}say another place with --blobs"
            )

    def find(self, engine: Engine) -> str:
        """Where the blobs of a store are that is there already. Raises CoordinatorError, with nothing changed.

        Another place than it says is taken where all of them have been copied to. A store of an older release says
        none: it takes the first that is not without them all. What is another federation's is never taken.
        """
        with engine.connect() as connection:
            own, recorded = connection.execute(select(tables.federation.c.id, tables.federation.c.blobs)).one()
        is_new = recorded is None or (self.said and self.to_record != recorded)
        place = self.wanted if is_new else self._known(recorded)
        if (whose := self._mark_at(place)) not in ("", own):
            raise CoordinatorError(
                f"{without_password(place)} holds the blobs of another federation, whose sweeps would delete those of"
                f" {self.name}: copy these to a place of their own, without the file {MARK!r}, and say it with --blobs"
            )
        if recorded is None:
            self._must_not_lack_all(engine)
        elif is_new:
            self._must_lack_none(engine, recorded)
        if not whose:
            self.mark(own, place)
        if is_new:
            with tables.writer(engine).begin() as connection:
                connection.execute(update(tables.federation).values(blobs=self.to_record))
        return place

    def mark(self, federation_id: str, place: str = "") -> None:
        """Durable. Raises CoordinatorError, and OSError where the place is a folder."""
        with self._asked(place or self.wanted):
            shelf_at(place or self.wanted).put(MARK, f"{federation_id}\n".encode())

    def _mark_at(self, place: str) -> str:
        """Whose it is; empty where nobody has said so."""
        with self._asked(place):
            return (read_at(place, MARK) or b"").decode(errors="replace").strip()

    def _digests(self) -> set[str]:
        with self._asked(self.wanted):
            return digests_at(self.wanted)

    @contextmanager
    def _asked(self, place: str) -> Iterator[None]:
        """A bucket that is away is not the home's fault."""
        try:
            yield
        except OSError as error:
            if folder_at(place):
                raise
            said = str(error).partition("\n")[0]
            raise CoordinatorError(f"cannot use the blobs of {self.name} ({said}): start again later") from None

    def _known(self, recorded: str) -> str:
        if os.path.isabs(recorded) and not os.path.isdir(recorded):
            raise CoordinatorError(
                f"the blobs of {self.name} are in {recorded}, which is not there:"
                " bring it back, or say with --blobs where they are now"
            )
        return self.said or self._at(recorded)

    def _at(self, recorded: str) -> str:
        return recorded if folder_at(recorded) is None else str(self.home / recorded)

    def _must_not_lack_all(self, engine: Engine) -> None:
        all_of_them = named(engine)
        if all_of_them and not all_of_them & self._digests():
            raise CoordinatorError(
                f"none of the blobs of {self.name} is at {without_password(self.wanted)}:"
                " say with --blobs where they are"
            )

    def _must_lack_none(self, engine: Engine, recorded: str) -> None:
        all_of_them, place = named(engine), without_password(self.wanted)
        if lacking := all_of_them - self._digests():
            raise CoordinatorError(
                f"the blobs of {self.name} are at {self._at(recorded)}, and {len(lacking):,} of them are not at"
                f" {place}: leave --blobs out, or copy all of them there first"
            )
        log.warning("blobs are kept at %s from now on, and no longer at %s: nobody deletes there what is erased", place,
                    self._at(recorded))  # fmt: skip


def editions(engine: Engine) -> list[int]:
    """Newest first. Who holds the lease begins one, numbered like its token, where a sweep of an earlier coordinator is
    wanted yet: that one may have been stopped inside, and go on at any time."""
    begun = select(tables.cursors.c.position).where(tables.cursors.c.name.startswith(EDITION))
    with engine.connect() as connection:
        found = sorted(connection.execute(begun).scalars(), reverse=True)
        may_go_on = connection.execute(select(tables.cursors).where(tables.cursors.c.name == SWEEP_WANTED)).first()
    if not may_go_on:
        return found
    token = fence_of(engine).token
    with tables.writer(engine).begin() as connection:
        connection.execute(insert(tables.cursors).values(name=f"{EDITION}{token}", position=token))
    return [token, *found]
