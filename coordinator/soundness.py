"""Is every blob there, and is it what its name says? A reader: nothing is changed, what is bad is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqlalchemy import Engine, select

from coordinator.blobs import Blobs
from coordinator.catalog import Version
from coordinator.errors import CoordinatorError
from coordinator.history import History
from coordinator.tables import blocks, commands, entries, journal, restated, verdicts
from protos.fedshare.v1.federation_pb2 import OUTCOME_ERASED


@dataclass(frozen=True)
class Bad:
    """One blob. why: one sentence with its file. of: what it is a part of."""

    digest: str
    why: str
    of: str


@dataclass
class Blame:
    """Reads each blob once."""

    blobs: Blobs
    found: dict[str, str] = field(default_factory=dict)

    def of(self, digest: str) -> str:
        """Why it cannot be used; empty when it can."""
        if digest not in self.found:
            try:
                self.blobs.get(digest)
                self.found[digest] = ""
            except (CoordinatorError, OSError) as error:
                self.found[digest] = str(error)
        return self.found[digest]


@dataclass(frozen=True)
class Checked:
    """blobs: how many were read. sound: the newest version that is whole."""

    blobs: int
    head: int
    sound: int
    bad: tuple[Bad, ...]


def check(history: History, engine: Engine) -> Checked:
    """Cost: every blob is read once."""
    blame = Blame(history.blobs)
    bad = tuple(Bad(digest, why, of) for digest, of in _named(engine) if (why := blame.of(digest)))
    sound = newest_sound(history, blame)
    return Checked(len(blame.found), history.catalog.head().version, sound.version, bad)


def newest_sound(history: History, blame: Blame | None = None) -> Version:
    """The newest version that can be read whole. Version 0 always can."""
    blame = blame or Blame(history.blobs)
    every = [version for version in history.catalog.every() if not version.gone]
    return next((v for v in reversed(every) if _is_whole(history, v, blame)), every[0])


def _is_whole(history: History, version: Version, blame: Blame) -> bool:
    names = [name.digest for name in history.catalog.blocks_of(version)]
    names += [task.kept.blob.digest for task in history.catalog.tasks_of(version)]
    return not any(blame.of(digest) for digest in names)


def _named(engine: Engine) -> Iterator[tuple[str, str]]:
    """(digest, what it is a part of) of everything that a row names."""
    erased = select(verdicts.c.position).where(verdicts.c.outcome == OUTCOME_ERASED)
    no_blob = (erased, select(restated.c.position), select(commands.c.position))
    updates = select(journal).where(*(journal.c.position.not_in(others) for others in no_blob))
    with engine.connect() as connection:
        for row in connection.execute(select(blocks)):
            yield row.digest, f"block {row.ordinal} of generation {row.generation}"
        for row in connection.execute(select(entries)):
            until = f"to {row.version_until - 1}" if row.version_until else "on"
            yield row.digest, f"task {row.task} from version {row.version_from} {until}"
        for row in connection.execute(updates):
            yield row.digest, f"update {row.update_id} of {row.worker} for {row.task}"
        for row in connection.execute(select(restated)):
            yield row.digest, f"what stands in for the update at position {row.position}"
