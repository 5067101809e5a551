"""Everything that happened to one update, in order, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coordinator.catalog import Catalog
from coordinator.errors import Refused
from coordinator.journal import Decision, Journal, Position
from coordinator.measured import Measured
from coordinator.transition import Record
from coordinator.views import merge_of, verdict
from protos.fedshare.v1 import federation_pb2 as pb

PREFIX_MIN = 6
PREFIX = re.compile(rf"[0-9a-fA-F]{{{PREFIX_MIN},32}}")


def tell(id_prefix: str, journal: Journal, catalog: Catalog, measured: Measured) -> pb.StoryReply:
    """Raises Refused when no update, or more than one, has an id that starts so."""
    found = journal.find(id_prefix) if PREFIX.fullmatch(id_prefix) else []
    if len(found) != 1:
        what = "several updates have" if found else "no update has"
        raise Refused(
            pb.OUTCOME_REFUSED_MALFORMED,
            f"{what} an id that starts with {id_prefix[:40]!r} (give {PREFIX_MIN} or more digits of it)",
        )
    position, decision = found[0]
    decided = (_decided(v, catalog) for v in _verdicts(decision, journal))
    events = [_received(position), *decided, *_measured(position, journal, measured)]
    events.sort(key=lambda event: event.at)
    return pb.StoryReply(update_id=decision.update_id, events=events, verdict=verdict(decision, catalog))


def _received(position: Position) -> pb.StoryEvent:
    s = position.submission
    if position.command is not None:
        detail = f"the command to {position.command.WhichOneof('command')}"
    elif not s.worker:
        detail = f"{s.nbytes:,} bytes"
    else:
        detail = (
            f"{s.nbytes:,} bytes for task {s.task} from {s.worker} (incarnation {s.incarnation}),"
            f" made for version {s.base_version}{_began(s.warm_start)}"
        )
    journaled = f"{detail}; journaled at position {position.position}"
    return pb.StoryEvent(at=position.received_at, what="received", detail=journaled)


def _decided(decision: Decision, catalog: Catalog) -> pb.StoryEvent:
    what = pb.Outcome.Name(decision.outcome).removeprefix("OUTCOME_").lower()
    detail = decision.reason
    r = merge_of(decision, catalog)
    if r is not None and r.kind == pb.VERSION_KIND_MERGE:
        detail = (
            f"into version {decision.version} (staleness {r.staleness}{_weight(r)});"
            f" relative error {r.relative_error:.1e}; {r.new_out} out and {r.new_in} in directions added,"
            f" the basis has {r.basis_out} and {r.basis_in}"
        )
    elif decision.version:
        detail = f"{detail} (version {decision.version})"
    return pb.StoryEvent(at=decision.decided_at or 0.0, what=what, detail=detail)


def _began(warm_start: str) -> str:
    return f", begun with what {warm_start} had learned" if warm_start else ""


def _weight(record: Record) -> str:
    return "" if record.weight == 1 else f", weight {record.weight:.3g}"


def _verdicts(decision: Decision, journal: Journal) -> list[Decision]:
    """All there were on an entry, oldest first."""
    return [*journal.past(decision.position), *([decision] if decision.decided_at is not None else [])]


def _measured(position: Position, journal: Journal, measured: Measured) -> Iterator[pb.StoryEvent]:
    """What its worker reported on versions whose newest update of this worker and task is this one.

    That serves every policy: an update that replaces the task is what was measured, and one that is added up was the
    last of its worker's to be added. Newest: whose first merge was the last, as a rollback brings updates back in the
    order that they had.
    """
    s = position.submission
    if not s.task:  # a command, or erased
        return
    updates = [_InVersions.of(_verdicts(d, journal)) for d in journal.of_contributor(s.worker, s.task)]
    for m in measured.of_task(s.task):
        if m.worker == s.worker:
            newest = max((u for u in updates if u.is_in(m.version)), key=lambda u: u.place, default=None)
            if newest and newest.position == position.position:
                yield pb.StoryEvent(at=m.at, what="reported", detail=f"{m.name} {m.value:.6g} on version {m.version}")


@dataclass(frozen=True)
class _InVersions:
    """When an update was merged and taken back. moves: (version, is in it and those that follow), in order."""

    position: int
    moves: Sequence[tuple[int, bool]]

    @staticmethod
    def of(verdicts: Sequence[Decision]) -> _InVersions:
        moved = [v for v in verdicts if v.outcome in (pb.OUTCOME_MERGED, pb.OUTCOME_REVERTED)]
        position = verdicts[0].position if verdicts else 0
        return _InVersions(position, [(v.version, v.outcome == pb.OUTCOME_MERGED) for v in moved])

    @property
    def place(self) -> tuple[int, int]:
        """Of its merge among others'. An update that somebody accepted is merged after what came later."""
        return next(version for version, merged in self.moves if merged), self.position

    def is_in(self, version: int) -> bool:
        until = [merged for since, merged in self.moves if since <= version]
        return bool(until) and until[-1]
