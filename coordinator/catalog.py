"""The catalog of versions: immutable, each with its parent, and which blobs it is made of.

`publish` is the one place that moves the head: version, blobs and verdicts become visible in one commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, func, insert, or_, select, update

from coordinator.draft import BlobName, Draft, Kept
from coordinator.erasure import erase
from coordinator.letting_go import COLLECTED, let_go
from coordinator.quarantine import Norm
from coordinator.tables import blocks, entries, gone, versions, writer
from coordinator.transition import Record
from coordinator.verdicts import decide, overrule
from protos.fedshare.v1.federation_pb2 import VERSION_KIND_MERGE
from share_algo import Certificate

RECORDS_MAX = 1000
VERSION_MAX = 2**63 - 1
"""No version has a larger number: SQLite could not hold it."""


@dataclass(frozen=True)
class TaskBlob:
    """What a version holds of a task, and the version since which it is so."""

    task: str
    version: int
    kept: Kept


@dataclass(frozen=True)
class Version:
    """One row of the catalog. `blocks` is how many of its generation's blocks are its basis.

    records: one for each update merged in it; one for a version that is no merge; none for version 0.
    gone: why only its record is left; empty while it can be read.
    """

    version: int
    parent: int
    generation: int
    blocks: int
    digest: str
    created_at: float
    records: tuple[Record, ...] = ()
    gone: str = ""

    @property
    def task(self) -> str:
        """Learned last in it; empty where it is no merge."""
        return self.records[-1].task if self.records else ""

    @property
    def largest_error(self) -> float:
        """Of all its tasks."""
        return self.records[-1].largest_error if self.records else 0.0


@dataclass(frozen=True)
class Outline:
    """A version without its record: how much of which generation's basis it needs."""

    version: int
    generation: int
    blocks: int
    is_gone: bool


class Catalog:
    def __init__(self, engine: Engine):
        self._engine, self._writer = engine, writer(engine)

    def ensure_root(self, federation_id: str, at: float, *start: BlobName) -> None:
        """Version 0: no tasks, and no directions but those of the blocks `start`."""
        with self._writer.begin() as connection:
            if connection.execute(select(versions.c.version).limit(1)).one_or_none() is None:
                digest = _digest(federation_id, *(block.digest for block in start))
                _insert_version(connection, Version(0, 0, 0, len(start), digest, at), None)
                _insert_blocks(connection, 0, 0, start)

    def head(self) -> Version:
        return self._versions(select(versions).order_by(versions.c.version.desc()).limit(1))[0]

    def get(self, version: int) -> Version | None:
        found = self._versions(select(versions).where(versions.c.version == min(version, VERSION_MAX)))
        return found[0] if found else None

    def records(self, first: int, limit: int) -> list[Version]:
        """Versions from `first` on, oldest first, at most `limit` (0: as many as are ever given)."""
        query = select(versions).where(versions.c.version >= min(first, VERSION_MAX)).order_by(versions.c.version)
        return self._versions(query.limit(min(limit or RECORDS_MAX, RECORDS_MAX)))

    def blocks_of(self, version: Version) -> list[BlobName]:
        return self.first_blocks(version.generation, version.blocks)

    def first_blocks(self, generation: int, count: int) -> list[BlobName]:
        of = (blocks.c.generation == generation, blocks.c.ordinal < count)
        query = select(blocks).where(*of).order_by(blocks.c.ordinal)
        with self._engine.connect() as connection:
            return [BlobName(row.digest, row.nbytes) for row in connection.execute(query)]

    def every(self) -> Iterator[Version]:
        """All versions, oldest first."""
        first = 0
        while found := self.records(first, RECORDS_MAX):
            yield from found
            first = found[-1].version + 1

    def tasks_of(self, version: Version) -> list[TaskBlob]:
        return self._entries(version.version)

    def task_of(self, version: int, task: str) -> TaskBlob | None:
        found = self._entries(version, entries.c.task == task)
        return found[0] if found else None

    def _entries(self, version: int, *of: ColumnElement[bool]) -> list[TaskBlob]:
        here = and_(entries.c.version_from <= version, _lasts_until(version), *of)
        with self._engine.connect() as connection:
            return list(map(_task_blob, connection.execute(select(entries).where(here).order_by(entries.c.task))))

    def entries_since(self, version: int) -> list[tuple[TaskBlob, int | None]]:
        """(entry, version that it ended with) of all that belong to this version or to later ones."""
        query = select(entries).where(_lasts_until(version))
        with self._engine.connect() as connection:
            return [(_task_blob(row), row.version_until) for row in connection.execute(query)]

    def norms(self, limit: int) -> list[Norm]:
        """Of the updates that were merged last, oldest first."""
        query = select(versions.c.record).order_by(versions.c.version.desc())
        with self._engine.connect() as connection:
            rows = connection.execution_options(yield_per=limit).execute(query).scalars()
            newest = (Record(**r) for record in rows for r in reversed(record))
            merged = (Norm(r.worker, r.norm) for r in newest if r.kind == VERSION_KIND_MERGE and r.norm)
            return list(islice(merged, limit))[::-1]

    def publish(self, parent: Version, draft: Draft, at: float) -> Version:
        """The new head, durable and visible when this returns. With it all verdicts that follow from it."""
        number = parent.version + 1
        with self._writer.begin() as connection:
            generation = _newest_generation(connection) + 1 if draft.afresh else parent.generation
            kept = 0 if draft.afresh else parent.blocks
            error = _change_entries(connection, number, draft.entries, parent.largest_error)
            records = tuple(replace(record, largest_error=error) for record in draft.records)
            version = Version(number, parent.version, generation, kept + len(draft.blocks),
                              _digest_of(parent, draft), at, records)  # fmt: skip
            _insert_version(connection, version, draft.position)
            _insert_blocks(connection, generation, kept, draft.blocks)
            decide(connection, [ruling.by(number) for ruling in draft.first], at)
            for ruling in draft.later:
                overrule(connection, ruling.by(number), at)
            _take_away(connection, draft)
        return version

    def settle(self, draft: Draft, at: float) -> None:
        """What changes without a new version, durable when this returns: verdicts, and which versions can be read."""
        with self._writer.begin() as connection:
            decide(connection, draft.first, at)
            for ruling in draft.later:
                overrule(connection, ruling, at)
            _take_away(connection, draft)

    def outlines(self) -> list[Outline]:
        """Of all versions, oldest first. Reads no record."""
        columns = (versions.c.version, versions.c.generation, versions.c.blocks, gone.c.why)
        query = select(*columns).outerjoin(gone, gone.c.version == versions.c.version).order_by(versions.c.version)
        with self._engine.connect() as connection:
            return [Outline(r.version, r.generation, r.blocks, bool(r.why)) for r in connection.execute(query)]

    def count_readable(self) -> int:
        """Versions that can be read, without version 0."""
        with self._engine.connect() as connection:
            made, left = (
                connection.execute(select(func.count()).select_from(t)).scalar_one() for t in (versions, gone)
            )
        return made - left - 1

    def newest_collected(self) -> int:
        """0: none."""
        query = select(func.coalesce(func.max(gone.c.version), 0)).where(gone.c.why == COLLECTED)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def _versions(self, query) -> list[Version]:
        query = query.add_columns(gone.c.why).outerjoin(gone, gone.c.version == versions.c.version)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            Version(r.version, r.parent, r.generation, r.blocks, r.digest, r.created_at,
                    tuple(Record(**record) for record in r.record), r.why or "")
            for r in rows
        ]  # fmt: skip


def _take_away(connection: Connection, draft: Draft) -> None:
    if draft.erasure:
        erase(connection, draft.erasure)
    if draft.letting_go:
        let_go(connection, draft.letting_go)


def _insert_version(connection: Connection, version: Version, position: int | None) -> None:
    row = asdict(version)
    records, _ = row.pop("records"), row.pop("gone")
    connection.execute(insert(versions).values(**row, record=records, position=position))


def _insert_blocks(connection: Connection, generation: int, first: int, names: Iterable[BlobName]) -> None:
    for ordinal, name in enumerate(names, first):
        connection.execute(insert(blocks).values(generation=generation, ordinal=ordinal, **asdict(name)))


def _newest_generation(connection: Connection) -> int:
    return connection.execute(select(func.max(versions.c.generation))).scalar_one()


def _change_entries(
    connection: Connection, number: int, changed: Mapping[str, Kept | None], largest_before: float
) -> float:
    """Returns the largest relative error of all tasks there are now. Looks at the others only if the largest went."""
    largest, is_sure = largest_before, True
    for task, entry in changed.items():
        old = (entries.c.task == task, entries.c.version_until.is_(None))
        is_sure &= connection.execute(_LARGEST.where(*old)).scalar_one() < largest_before
        connection.execute(update(entries).where(*old).values(version_until=number))
        if entry is not None:
            own = {"labels": list(entry.labels), **asdict(entry.blob), **asdict(entry.certificate)}
            connection.execute(insert(entries).values(version_from=number, task=task, **own))
            largest = max(largest, entry.certificate.relative_error)
    if is_sure:
        return largest
    return float(connection.execute(_LARGEST.where(entries.c.version_until.is_(None))).scalar_one())


_LARGEST = select(func.coalesce(func.max(entries.c.error / entries.c.norm), 0.0)).where(entries.c.norm > 0)


def _lasts_until(version: int) -> ColumnElement[bool]:
    return or_(entries.c.version_until.is_(None), entries.c.version_until > version)


def _task_blob(row: Row) -> TaskBlob:
    return TaskBlob(row.task, row.version_from, _kept(row))


def _kept(row: Row) -> Kept:
    certificate = Certificate(row.norm, row.error, row.loose, row.is_bound)
    return Kept(BlobName(row.digest, row.nbytes), tuple(row.labels), certificate)


def _digest_of(parent: Version, draft: Draft) -> str:
    made_of = [entry and entry.blob.digest for entry in draft.entries.values()]
    ids = [record.update_id for record in draft.records]
    return _digest(parent.digest, parent.version + 1, ids, [block.digest for block in draft.blocks], made_of)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
