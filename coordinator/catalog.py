"""The catalog of versions: immutable, each with its parent, and which blobs it is made of.

`publish` is the one place that moves the head: version, blobs and verdict become visible in one commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from coordinator.journal import decide
from coordinator.tables import blocks, entries, versions, writer
from coordinator.transition import Record
from protos.fedshare.v1.federation_pb2 import OUTCOME_MERGED

RECORDS_MAX = 1000
VERSION_MAX = 2**63 - 1
"""No version has a larger number: SQLite could not hold it."""


@dataclass(frozen=True)
class BlobName:
    digest: str
    nbytes: int


@dataclass(frozen=True)
class TaskBlob:
    task: str
    blob: BlobName
    version: int
    labels: list[str]


@dataclass(frozen=True)
class Version:
    """One row of the catalog. `blocks` is how many of its generation's blocks are its basis."""

    version: int
    parent: int
    generation: int
    blocks: int
    digest: str
    created_at: float
    record: Record = field(default_factory=Record)


class Catalog:
    def __init__(self, engine: Engine):
        self._engine, self._writer = engine, writer(engine)

    def ensure_root(self, federation_id: str, at: float) -> None:
        """Version 0: no directions, no tasks."""
        with self._writer.begin() as connection:
            if connection.execute(select(func.count()).select_from(versions)).scalar_one() == 0:
                root = Version(0, 0, 0, 0, _digest(federation_id), at)
                _insert_version(connection, root, None)

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
        query = (
            select(blocks)
            .where(blocks.c.generation == version.generation, blocks.c.ordinal < version.blocks)
            .order_by(blocks.c.ordinal)
        )
        with self._engine.connect() as connection:
            return [BlobName(row.digest, row.nbytes) for row in connection.execute(query)]

    def tasks_of(self, version: Version) -> list[TaskBlob]:
        v = version.version
        until = or_(entries.c.version_until.is_(None), entries.c.version_until > v)
        query = select(entries).where(and_(entries.c.version_from <= v, until)).order_by(entries.c.task)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [TaskBlob(r.task, BlobName(r.digest, r.nbytes), r.version_from, r.labels) for r in rows]

    def publish(
        self,
        parent: Version,
        record: Record,
        block: BlobName | None,
        entry: BlobName,
        labels: Iterable[str],
        at: float,
    ) -> Version:
        """The new head, durable and visible when this returns. Its blobs must be on disk already."""
        number = parent.version + 1
        digest = _digest(parent.digest, number, record.update_id, block and block.digest, entry.digest)
        version = Version(number, parent.version, parent.generation, parent.blocks + bool(block), digest, at, record)
        with self._writer.begin() as connection:
            _insert_version(connection, version, record.position)
            if block:
                connection.execute(
                    insert(blocks).values(generation=version.generation, ordinal=parent.blocks, **asdict(block))
                )
            connection.execute(
                update(entries)
                .where(entries.c.task == record.task, entries.c.version_until.is_(None))
                .values(version_until=number)
            )
            connection.execute(
                insert(entries).values(version_from=number, task=record.task, labels=list(labels), **asdict(entry))
            )
            decide(connection, record.position, OUTCOME_MERGED, number, "", at)
        return version

    def _versions(self, query) -> list[Version]:  # type: ignore[no-untyped-def]
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [
            Version(r.version, r.parent, r.generation, r.blocks, r.digest, r.created_at, Record(**r.record))
            for r in rows
        ]


def _insert_version(connection: Connection, version: Version, position: int | None) -> None:
    connection.execute(insert(versions).values(**asdict(version), position=position))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
