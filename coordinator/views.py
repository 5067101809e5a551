"""Answers to questions, as messages: read from the journal and the catalog, nothing is changed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Protocol

from coordinator.blobs import Blobs
from coordinator.catalog import Catalog, TaskBlob, Version
from coordinator.draft import BlobName
from coordinator.errors import CoordinatorError, Refused
from coordinator.journal import Decision, Journal, Position
from coordinator.letting_go import COLLECTED
from coordinator.measured import Measurement
from coordinator.members import Members
from coordinator.transition import Record
from protos.fedshare.v1 import federation_pb2 as pb

TASKS_TOLD = 20
"""In a sentence: gRPC carries no long ones."""


class LineageView(Protocol):
    """What status says of the lineage reader."""

    @property
    def uri(self) -> str: ...

    def behind(self) -> int: ...


def existing(catalog: Catalog, number: int) -> Version:
    """Raises Refused when there is no such version, or none that can be read."""
    version = catalog.get(number)
    if version is None:
        newest = catalog.head().version
        raise Refused(pb.OUTCOME_REFUSED_BASE_VERSION, f"there is no version {number}: the newest is {newest}")
    if version.gone:
        raise Refused(pb.OUTCOME_REFUSED_BASE_GONE, f"version {number} was {version.gone}: only its record is left")
    return version


def measurable(catalog: Catalog, number: int) -> None:
    """A version that was measured may be collected by the time that this is reported. Raises Refused for others."""
    version = catalog.get(number)
    if version is None or version.gone != COLLECTED:
        existing(catalog, number)


def manifest(catalog: Catalog, request: pb.FetchRequest, why: str = "") -> pb.Manifest:
    """Raises Refused when the version or a task asked for does not exist. why: the head cannot be had instead."""
    version = existing(catalog, request.version) if request.HasField("version") else catalog.head()
    tasks, blocks = {t.task: t for t in catalog.tasks_of(version)}, catalog.blocks_of(version)
    existing(catalog, version.version)  # of one that went meanwhile only a part was there to be read
    for name in request.tasks:
        if name not in tasks:
            known = ", ".join(list(tasks)[:TASKS_TOLD]) or "none yet"
            more = f" and {len(tasks) - TASKS_TOLD} more" if len(tasks) > TASKS_TOLD else ""
            raise Refused(
                pb.OUTCOME_REFUSED_BASE_VERSION,
                f"{_instead_of(catalog.head(), version, why)} has no task {name[:100]!r}; it has: {known}{more}",
            )
    wanted = tasks.values() if request.every_task else [tasks[name] for name in request.tasks]
    return pb.Manifest(
        version=version.version,
        parent=version.parent,
        generation=version.generation,
        digest=version.digest,
        blocks=[_ref(name) for name in blocks],
        tasks=[_task(t) for t in wanted],
    )


def _instead_of(head: Version, served: Version, why: str) -> str:
    if not why or served.version == head.version:
        return f"version {served.version}"
    return f"version {head.version} cannot be read ({why}); version {served.version}, which is served meanwhile,"


def part(catalog: Catalog, blobs: Blobs, version: int, digest: str) -> bytes:
    """A blob that a version is made of. Raises Refused when the version is gone since its manifest was read."""
    try:
        return blobs.get(digest)
    except CoordinatorError:
        existing(catalog, version)
        raise


def aside(position: Position, decision: Decision) -> pb.Aside:
    return pb.Aside(
        update_id=decision.update_id,
        worker=position.submission.worker,
        task=position.submission.task,
        position=position.position,
        received_at=position.received_at,
        reason=decision.reason,
    )


def status(
    spec: pb.FederationSpec, members: Members, journal: Journal, catalog: Catalog, lineage: LineageView
) -> pb.StatusReply:
    head, counts = catalog.head(), journal.counts()
    return pb.StatusReply(
        spec=spec,
        head=head.version,
        queued=counts[pb.OUTCOME_QUEUED],
        merged=counts[pb.OUTCOME_MERGED],
        skipped=counts[pb.OUTCOME_SKIPPED],
        members=[
            pb.Member(
                worker=m.worker,
                task=m.task,
                incarnation=m.incarnation,
                joined_at=m.joined_at,
                left_at=m.left_at or 0,
            )
            for m in members.everyone()
        ],
        bytes_basis=sum(b.nbytes for b in catalog.blocks_of(head)),
        bytes_tasks=sum(t.kept.blob.nbytes for t in catalog.tasks_of(head)),
        lineage=lineage.uri,
        lineage_behind=lineage.behind(),
        reverted=counts[pb.OUTCOME_REVERTED],
        erased=counts[pb.OUTCOME_ERASED],
        buffered=counts[pb.OUTCOME_BUFFERED],
        quarantined=counts[pb.OUTCOME_QUARANTINED],
        generation=head.generation,
        rejected=counts[pb.OUTCOME_REJECTED],
        superseded=counts[pb.OUTCOME_SUPERSEDED],
        too_stale=counts[pb.OUTCOME_TOO_STALE],
        commands_queued=journal.commands_queued(),
    )


def versions(catalog: Catalog, request: pb.VersionsRequest) -> pb.VersionsReply:
    found = catalog.records(request.first, request.limit)
    return pb.VersionsReply(versions=[record for version in found for record in records(version)])


def quarantined(journal: Journal) -> pb.QuarantinedReply:
    return pb.QuarantinedReply(updates=[aside(position, decision) for position, decision in journal.quarantined()])


def records(version: Version) -> list[pb.VersionRecord]:
    """One for each update that was merged in it; one for a version that is no merge."""
    return [_record(version, record) for record in version.records or [Record(kind=pb.VERSION_KIND_UNSPECIFIED)]]


def _record(version: Version, record: Record) -> pb.VersionRecord:
    fields = asdict(record)
    del fields["position"]
    return pb.VersionRecord(
        version=version.version,
        parent=version.parent,
        generation=version.generation,
        digest=version.digest,
        created_at=version.created_at,
        gone=version.gone,
        **fields,
    )


def metric(m: Measurement) -> pb.Metric:
    return pb.Metric(worker=m.worker, task=m.task, version=m.version, name=m.name, value=m.value, at=m.at)


def verdict(decision: Decision, catalog: Catalog) -> pb.Verdict:
    merged = merge_of(decision, catalog)
    return pb.Verdict(
        update_id=decision.update_id,
        outcome=decision.outcome,
        reason=decision.reason,
        position=decision.position,
        version=decision.version,
        relative_error=merged.relative_error if merged else 0.0,
        weight=merged.weight if merged and merged.kind == pb.VERSION_KIND_MERGE else 0.0,
    )


def merge_of(decision: Decision, catalog: Catalog) -> Record | None:
    """How the update was merged in the version that the decision names."""
    version = catalog.get(decision.version) if decision.version else None
    found = [r for r in version.records if r.position == decision.position] if version else []
    return found[0] if found else None


def _task(t: TaskBlob) -> pb.TaskRef:
    return pb.TaskRef(
        task=t.task,
        entry=_ref(t.kept.blob),
        version=t.version,
        labels=t.kept.labels,
        relative_error=t.kept.certificate.relative_error,
        is_bound=t.kept.certificate.is_bound,
    )


def _ref(name: BlobName) -> pb.BlobRef:
    return pb.BlobRef(digest=name.digest, nbytes=name.nbytes)
