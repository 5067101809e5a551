"""What has become of each journal entry: one first verdict, and later ones where a command or a buffer changed it.

A command moves an update between "merged" and "reverted"; erased is for good. One that was buffered is merged with the
last that its task waits for. What a verdict was before stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Select, func, insert, select, update
from sqlalchemy import union_all as union

from coordinator.tables import past_verdicts, verdicts
from protos.fedshare.v1.federation_pb2 import (
    OUTCOME_BUFFERED,
    OUTCOME_ERASED,
    OUTCOME_MERGED,
    OUTCOME_QUARANTINED,
    OUTCOME_REJECTED,
    OUTCOME_REVERTED,
    OUTCOME_SKIPPED,
    OUTCOME_SUPERSEDED,
    OUTCOME_TOO_STALE,
    Outcome,
)

IN_NO_VERSION = (
    OUTCOME_SKIPPED,
    OUTCOME_BUFFERED,
    OUTCOME_QUARANTINED,
    OUTCOME_REJECTED,
    OUTCOME_SUPERSEDED,
    OUTCOME_TOO_STALE,
)
"""Verdicts that no version has to do with."""


REASON_MAX = 2_000
"""Characters."""


@dataclass(frozen=True)
class Ruling:
    """A verdict as it is to be given. version: that the entry is in, or that took it back; 0 where there is none."""

    position: int
    outcome: Outcome
    version: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        """Whatever went into the reason, a database takes it."""
        object.__setattr__(self, "reason", self.reason.replace("\0", "\\0")[:REASON_MAX])

    def by(self, version: int) -> Ruling:
        """The same, given with the commit of this version."""
        return self if self.outcome in IN_NO_VERSION else replace(self, version=version)


def decide(connection: Connection, rulings: Iterable[Ruling], at: float) -> None:
    """The one line that gives first verdicts; a second verdict on a position is an IntegrityError."""
    if rows := [{**ruling.__dict__, "decided_at": at} for ruling in rulings]:
        connection.execute(insert(verdicts), rows)


def overrule(connection: Connection, ruling: Ruling, at: float) -> None:
    """Another verdict on an entry that has one; what it was before is kept."""
    of = verdicts.c.position == ruling.position
    before = connection.execute(select(verdicts).where(of)).one()
    past = select(func.count()).select_from(past_verdicts).where(past_verdicts.c.position == ruling.position)
    ordinal = connection.execute(past).scalar_one()
    connection.execute(insert(past_verdicts).values(**before._mapping, ordinal=ordinal))
    connection.execute(update(verdicts).where(of).values(**ruling.__dict__, decided_at=at))


def past_of(connection: Connection, position: int) -> list[tuple[Outcome, int, str, float]]:
    """(outcome, version, reason, at) of the verdicts that no longer hold, oldest first."""
    p = past_verdicts.c
    query = select(p.outcome, p.version, p.reason, p.decided_at).where(p.position == position).order_by(p.ordinal)
    return [tuple(row) for row in connection.execute(query)]


def moves_of(connection: Connection, positions: Select) -> list[tuple[int, int, bool]]:
    """(position, version, is in it and those that follow) of each time that one of these entries was merged or taken
    back, in the order of versions."""
    moves = []
    for ordinal, table in enumerate((past_verdicts, verdicts)):
        c = table.c
        moved = c.outcome.in_((OUTCOME_MERGED, OUTCOME_REVERTED)), c.position.in_(positions)
        query = select(c.position, c.version, c.outcome).where(*moved)
        moves += [(r.version, ordinal, r.position, r.outcome == OUTCOME_MERGED) for r in connection.execute(query)]
    return [(position, version, is_in) for version, _, position, is_in in sorted(moves)]


def alive_at(connection: Connection, version: int) -> set[int]:
    """Positions of the updates that `version` was made of: merged by then and not taken back by then."""
    v, p = verdicts.c, past_verdicts.c
    newest = func.max(p.ordinal) + 1
    ordinals = select(p.position, newest.label("ordinal")).group_by(p.position).subquery()
    current = select(v.position, v.outcome, v.version, func.coalesce(ordinals.c.ordinal, 0).label("ordinal"))
    past = select(p.position, p.outcome, p.version, p.ordinal)
    both = union(
        current.join_from(verdicts, ordinals, v.position == ordinals.c.position, isouter=True), past
    ).subquery()
    rulings = select(both.c.position, both.c.outcome).order_by(both.c.position, both.c.ordinal)
    moved = both.c.outcome.in_((OUTCOME_MERGED, OUTCOME_REVERTED, OUTCOME_ERASED))
    return _last_is_merged(connection.execute(rulings.where(moved, both.c.version <= version)).all())


def _last_is_merged(rulings: Iterable[tuple[int, Outcome]]) -> set[int]:
    last = {position: outcome for position, outcome in rulings}
    return {position for position, outcome in last.items() if outcome == OUTCOME_MERGED}
