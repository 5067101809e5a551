"""The past, read from journal, catalog and blobs as what `transition` and `rebuild` take."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from coordinator.bases import Bases
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog, Version
from coordinator.draft import Kept
from coordinator.journal import Journal, Position
from coordinator.rebuild import Event, Learned, Rebuilt
from coordinator.transition import Arrived
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis
from share_algo.codec import decode_entry, decode_update


@dataclass(frozen=True)
class History:
    journal: Journal
    catalog: Catalog
    blobs: Blobs
    bases: Bases

    def arrived(self, position: Position, staleness: int) -> Arrived:
        """One journaled update. Raises Refused where its base is gone, CoordinatorError for a damaged blob."""
        s = position.submission
        digest, _ = position.stand_in or (s.digest, 0)
        return Arrived(
            position=position.position,
            update_id=s.update_id,
            worker=s.worker,
            task=s.task,
            base_version=s.base_version,
            staleness=staleness,
            base=Basis() if position.stand_in else self.bases.of(s.base_version),
            update=decode_update(self.blobs.get(digest)),
            nbytes=s.nbytes,
            labels=s.labels,
            metrics=s.metrics,
        )

    def events(self, version: int, without: Collection[int] = ()) -> Iterator[Event]:
        """What `version` was made of: updates in the order in which they were merged first, and compactions."""
        alive = self.journal.alive_at(version) - set(without)
        for made in self._path(version):
            yield from self.events_in(made, alive)

    def events_in(self, version: Version, alive: Collection[int] | None = None) -> Iterator[Event]:
        """What a merge or a compaction added to its parent; of its updates only those that are `alive`."""
        for record in version.records:
            position = self.journal.at(record.position)
            if position.command is not None and record.kind == pb.VERSION_KIND_COMPACT:
                yield position.command.compact
            elif alive is None or record.position in alive:
                yield self.arrived(position, record.staleness)

    def target(self, rollback: Version) -> int:
        """The version that a rollback went back to."""
        command = self.journal.at(rollback.records[-1].position).command
        assert command is not None, "only a command rolls back"
        return command.rollback.version

    def state_of(self, version: Version) -> Rebuilt:
        """What is stored. Raises CoordinatorError for a damaged blob."""
        tasks = {t.task: self._learned(t.kept) for t in self.catalog.tasks_of(version)}
        return Rebuilt(self.bases.at(version), tasks)

    def _path(self, number: int) -> list[Version]:
        """The merges and compactions that led to a version, oldest first: a rollback leads to what it went back to."""
        versions = {v.version: v for v in self.catalog.every()}
        path: list[Version] = []
        while number:
            version = versions[number]
            if version.records[-1].kind in (pb.VERSION_KIND_MERGE, pb.VERSION_KIND_COMPACT):
                path.append(version)
            number = self.target(version) if is_rollback(version) else version.parent
        return path[::-1]

    def _learned(self, kept: Kept) -> Learned:
        return Learned(decode_entry(self.blobs.get(kept.blob.digest)), kept.labels, kept.certificate)


def is_rollback(version: Version) -> bool:
    return bool(version.records) and version.records[-1].kind == pb.VERSION_KIND_ROLLBACK
