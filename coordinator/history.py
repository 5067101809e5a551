"""The past, read from journal, catalog and blobs as what `transition` takes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from coordinator.bases import Bases
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog
from coordinator.journal import Journal, Position
from coordinator.transition import Arrived
from protos.fedshare.v1.federation_pb2 import VERSION_KIND_MERGE
from share_algo import Basis
from share_algo.codec import decode_update


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

    def survivors(self, version: int, without: Collection[int] = ()) -> Iterator[Arrived]:
        """The updates that `version` was made of, in the order in which they were merged first."""
        alive = self.journal.alive_at(version) - set(without)
        for made in self.catalog.every():
            for record in made.records:
                if record.kind == VERSION_KIND_MERGE and record.position in alive:
                    yield self.arrived(self.journal.at(record.position), record.staleness)
