"""The past, read from journal, catalog and blobs as what `transition` takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

from coordinator.bases import Bases
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog, Version
from coordinator.journal import Journal, Position, Submission
from coordinator.transition import Arrived, Learned, Record
from protos.fedshare.v1.federation_pb2 import VERSION_KIND_MERGE, FederationSpec
from protos.policy import gathers, policy_of
from share_algo import Basis, TaskEntry
from share_algo.codec import decode_entry, decode_update


@dataclass(frozen=True)
class History:
    spec: FederationSpec
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
            begun=None if position.stand_in else self._begun(s),
        )

    def learned(self, version: Version, task: str) -> Learned | None:
        """What a version holds of a task."""
        found = self.catalog.task_of(version.version, task)
        if found is None:
            return None
        return Learned(decode_entry(self.blobs.get(found.kept.blob.digest)), found.kept.labels, found.kept.certificate)

    def events_in(self, version: Version, alive: Collection[int] | None = None) -> Iterator[tuple[Arrived, ...]]:
        """What a version merged, step by step; with `alive` only the updates at these positions."""
        merged = [r for r in version.records if r.kind == VERSION_KIND_MERGE]
        kept = [r for r in merged if alive is None or r.position in alive]
        for _, group in groupby(kept, self._step):
            yield tuple(self.arrived(self.journal.at(r.position), r.staleness) for r in group)

    def events(self, version: int, without: Collection[int] = ()) -> Iterator[tuple[Arrived, ...]]:
        """The updates that `version` was made of, step by step, in the order in which they were merged first."""
        alive = self.journal.alive_at(version) - set(without)
        for made in self.catalog.every():
            yield from self.events_in(made, alive)

    def _step(self, record: Record) -> str | int:
        """Updates of one version with the same key are one step."""
        return record.task if gathers(policy_of(self.spec.policies, record.task)) else record.position

    def _begun(self, submission: Submission) -> TaskEntry | None:
        if not gathers(policy_of(self.spec.policies, submission.task)):
            return None
        found = self.catalog.task_of(submission.base_version, submission.task)
        return found and decode_entry(self.blobs.get(found.kept.blob.digest))
