"""The past, read from journal, catalog and blobs as what `transition` takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from sqlalchemy import Engine
from torch import Tensor

from coordinator.bases import Bases
from coordinator.blobs import Blobs
from coordinator.catalog import Catalog, Version
from coordinator.draft import BlobName, Kept
from coordinator.errors import CoordinatorError
from coordinator.journal import Journal, Position, ReadAhead, Submission
from coordinator.rebuild import Event
from coordinator.start import start_block
from coordinator.transition import Arrived, Learned, Record, State
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import gathers, policy_of
from share_algo import Basis, Block, TaskEntry
from share_algo.codec import decode_entry, decode_update, encode_block
from share_algo.types import NO_TENSORS


@dataclass(frozen=True)
class History:
    spec: pb.FederationSpec
    journal: Journal
    catalog: Catalog
    blobs: Blobs
    bases: Bases
    weights: Mapping[str, Tensor]
    must_go_on: Callable[[], None]

    @staticmethod
    def of(
        spec: pb.FederationSpec,
        engine: Engine,
        blobs: Blobs,
        weights: Mapping[str, Tensor] = NO_TENSORS,
        must_go_on: Callable[[], None] = lambda: None,
    ) -> History:
        """All that a store remembers. Reads nothing yet. weights: of the base model, where directions are derived from
        them; without them everything can be read but bases. must_go_on: see start_block."""
        catalog = Catalog(engine)
        return History(spec, Journal(engine), catalog, blobs, Bases(catalog, blobs, weights), weights, must_go_on)

    @cached_property
    def start(self) -> Block:
        """What version 0 holds. Kept, so that it is derived once."""
        return start_block(self.spec, self.weights, self._stored_start(), self.must_go_on)

    def _stored_start(self) -> Block | None:
        """None where there is none yet, and where it is damaged or gone."""
        root = self.catalog.get(0)
        with suppress(CoordinatorError):
            if root and root.blocks:
                return self.bases.at(root).blocks[0]
        return None

    def begin(self, at: float) -> None:
        """Version 0, durable when this returns. Raises as start_block does. A damaged block is mended."""
        blob = encode_block(self.start) if self.start else b""
        start = [BlobName(self.blobs.put(blob), len(blob))] if blob else []
        self.catalog.ensure_root(self.spec.federation_id, at, *start)

    def root(self) -> State:
        """Version 0: what every history begins with."""
        return State(Basis((self.start,)) if self.start else Basis())

    def arrived(self, position: Position, staleness: int) -> Arrived:
        """One journaled update. Raises Refused where its base is gone, CoordinatorError for a damaged blob."""
        s = position.submission
        stand_in = position.stand_in
        return Arrived(
            position=position.position,
            update_id=s.update_id,
            worker=s.worker,
            task=s.task,
            base_version=s.base_version,
            staleness=staleness,
            base=Basis() if stand_in else self.bases.behind(s.base_version),
            update=decode_update(self.blobs.get(stand_in.blob.digest if stand_in else s.digest)),
            nbytes=s.nbytes,
            labels=s.labels,
            metrics=s.metrics,
            warm_start=s.warm_start,
            begun=None if stand_in else self._begun(s),
            norm_sent=stand_in.norm if stand_in else None,
        )

    def learned(self, version: Version, task: str) -> Learned | None:
        """What a version holds of a task."""
        found = self.catalog.task_of(version.version, task)
        return self._read(found.kept) if found else None

    def events(self, version: int, without: Collection[int] = ()) -> Iterator[Event]:
        """What `version` was made of, step by step: updates as they were merged first, compactions between."""
        alive, journaled = self.journal.alive_at(version) - set(without), ReadAhead(self.journal)
        for made in self._path(version):
            yield from self.events_in(made, journaled, alive)

    def events_in(
        self, version: Version, journaled: ReadAhead, alive: Collection[int] | None = None
    ) -> Iterator[Event]:
        """What a merge or a compaction added to its parent; with `alive` only the updates at these positions."""
        if kind_of(version) == pb.VERSION_KIND_COMPACT:
            yield self._command(version).compact
        merged = [r for r in version.records if r.kind == pb.VERSION_KIND_MERGE]
        kept = [r for r in merged if alive is None or r.position in alive]
        for _, group in groupby(kept, self._step):
            yield tuple(self.arrived(journaled.at(r.position), r.staleness) for r in group)

    def target(self, rollback: Version) -> int:
        """The version that a rollback went back to."""
        return self._command(rollback).rollback.version

    def state_of(self, version: Version) -> State:
        """All that is stored of it. Raises CoordinatorError for a damaged blob."""
        tasks = {t.task: self._read(t.kept) for t in self.catalog.tasks_of(version)}
        return State(self.bases.at(version), tasks)

    def _path(self, number: int) -> list[Version]:
        """The merges and compactions that led to a version, oldest first: a rollback leads to what it went back to."""
        versions = {v.version: v for v in self.catalog.every()}
        path: list[Version] = []
        while number:
            version = versions[number]
            if kind_of(version) in (pb.VERSION_KIND_MERGE, pb.VERSION_KIND_COMPACT):
                path.append(version)
            number = self.target(version) if kind_of(version) == pb.VERSION_KIND_ROLLBACK else version.parent
        return path[::-1]

    def _command(self, version: Version) -> pb.CommandRequest:
        command = self.journal.at(version.records[-1].position).command
        assert command is not None, "only a command makes a version that is no merge"
        return command

    def _read(self, kept: Kept) -> Learned:
        return Learned(decode_entry(self.blobs.get(kept.blob.digest)), kept.labels, kept.certificate)

    def _step(self, record: Record) -> str | int:
        """Updates of one version with the same key are one step."""
        return record.task if gathers(policy_of(self.spec.policies, record.task)) else record.position

    def _begun(self, submission: Submission) -> TaskEntry | None:
        if not gathers(policy_of(self.spec.policies, submission.task)):
            return None
        self.bases.must_be_readable(submission.base_version)
        found = self.catalog.task_of(submission.base_version, submission.task)
        return decode_entry(self.blobs.get(found.kept.blob.digest)) if found else None


def kind_of(version: Version) -> pb.VersionKind:
    return version.records[-1].kind if version.records else pb.VERSION_KIND_UNSPECIFIED
