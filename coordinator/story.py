"""Everything that happened to one update, in order, in sentences."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from coordinator.catalog import VERSION_MAX, Catalog
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
    verdicts = _verdicts(decision, journal)
    certain = [_received(position), *(_decided(v, catalog) for v in verdicts)]
    events = _in_order(certain, _measured(position, verdicts, journal, measured))
    return pb.StoryReply(update_id=decision.update_id, events=events, verdict=verdict(decision, catalog))


def _in_order(certain: Iterable[pb.StoryEvent], reports: Iterable[_Report]) -> Iterator[pb.StoryEvent]:
    """Both keep their order, whatever the clock did. A report comes by its time, but never before its verdict."""
    waiting = deque(reports)
    for told, event in enumerate(certain):
        while waiting and waiting[0].after < told and waiting[0].event.at < event.at:
            yield waiting.popleft().event
        yield event
    yield from (report.event for report in waiting)


@dataclass(frozen=True)
class _Report:
    """after: the place, among what is certain, of the verdict that brought the update into what was measured."""

    event: pb.StoryEvent
    after: int


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


def _measured(
    position: Position, verdicts: Sequence[Decision], journal: Journal, measured: Measured
) -> Iterator[_Report]:
    """What its worker reported on versions whose newest update of this worker and task is this one.

    That serves every policy: an update that replaces the task is what was measured, and one that is added up was the
    last of its worker's to be added.
    """
    s = position.submission
    merged = [(v.version, place) for place, v in enumerate(verdicts, 1) if v.outcome == pb.OUTCOME_MERGED]
    if not s.task or not merged:  # a command, or erased, or in no version
        return
    turns = _turns(position.position, journal.moves_of(s.worker, s.task))
    if not turns:
        return
    end = turns[-1] if len(turns) % 2 == 0 else VERSION_MAX
    for m in measured.of_contributor(s.worker, s.task, (turns[0], end)):
        if bisect_right(turns, m.version) % 2:
            said = f"{m.name} {m.value:.6g} on version {m.version}"
            _, after = merged[bisect_right(merged, m.version, key=itemgetter(0)) - 1]
            yield _Report(pb.StoryEvent(at=m.at, what="reported", detail=said), after)


def _turns(position: int, moves: Sequence[tuple[int, int, bool]]) -> list[int]:
    """The versions with which this update becomes, and ceases to be, the newest of its worker and task, in turn.

    Newest: whose first merge was the last, as a rollback brings updates back in the order that they had, and one that
    somebody accepted is merged after what came later. moves: Journal.moves_of, of all of them.
    """
    first: dict[int, int] = {}
    for one, version, is_in in moves:
        if is_in:
            first.setdefault(one, version)
    if position not in first:
        return []
    own = first[position], position
    alive, turns = set[int](), list[int]()
    for version, moved in groupby(moves, key=itemgetter(1)):
        for one, _, is_in in moved:
            if one in first and (first[one], one) >= own:
                (alive.add if is_in else alive.discard)(one)
        if (alive == {position}) != len(turns) % 2:
            turns.append(version)
    return turns
