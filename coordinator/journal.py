"""The journal: every update that has a receipt, in order, and the verdict on each.

It is the queue between `receive` and `integrate`. Rows are only ever added. One line appends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, Engine, Row, func, insert, select

from coordinator.errors import Refused
from coordinator.members import must_be_current
from coordinator.tables import journal, verdicts, writer
from protos.fedshare.v1.federation_pb2 import (
    OUTCOME_MERGED,
    OUTCOME_QUEUED,
    OUTCOME_REFUSED_ID_REUSED,
    OUTCOME_SKIPPED,
    Outcome,
)


@dataclass(frozen=True)
class Submission:
    """One update as it is journaled; its tensors are in the blob `digest`."""

    update_id: str
    worker: str
    incarnation: int
    task: str
    base_version: int
    digest: str
    nbytes: int
    labels: Sequence[str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Position:
    """A submission and its place in the journal."""

    position: int
    submission: Submission
    received_at: float


@dataclass(frozen=True)
class Decision:
    """What is known of an update: queued until it is decided."""

    update_id: str
    position: int
    outcome: Outcome = OUTCOME_QUEUED
    version: int = 0
    reason: str = ""
    decided_at: float | None = None


class Journal:
    def __init__(self, engine: Engine):
        self._engine, self._writer = engine, writer(engine)

    def append(self, submission: Submission, at: float) -> tuple[Decision, bool]:
        """Durable when it returns: (decision, was it here before). A repeated id changes nothing."""
        with self._writer.begin() as connection:
            if known := self._known(connection, submission.update_id, submission.digest):
                return known, True
            must_be_current(connection, submission.worker, submission.incarnation)
            row = connection.execute(insert(journal).values(**asdict(submission), received_at=at))
            return Decision(submission.update_id, row.inserted_primary_key[0]), False

    def expect(self, update_id: str, digest: str, worker: str, incarnation: int) -> Decision | None:
        """The decision on an update that is here already; None for a new one. What `append` would refuse is refused."""
        with self._engine.connect() as connection:
            if known := self._known(connection, update_id, digest):
                return known
            must_be_current(connection, worker, incarnation)
            return None

    def after(self, position: int) -> Position | None:
        """The next entry to be consumed."""
        query = select(journal).where(journal.c.position > position).order_by(journal.c.position).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _position(row) if row else None

    def consumed(self) -> int:
        """Every entry up to this position has its verdict."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.coalesce(func.max(verdicts.c.position), 0))).scalar_one()

    def skip(self, position: int, reason: str, at: float) -> None:
        with self._writer.begin() as connection:
            decide(connection, position, OUTCOME_SKIPPED, 0, reason, at)

    def counts(self) -> dict[Outcome, int]:
        """How many are queued, merged, skipped."""
        query = select(verdicts.c.outcome, func.count()).group_by(verdicts.c.outcome)
        with self._engine.connect() as connection:
            decided = {outcome: count for outcome, count in connection.execute(query).all()}
            total = connection.execute(select(func.count()).select_from(journal)).scalar_one()
        return {
            OUTCOME_MERGED: 0,
            OUTCOME_SKIPPED: 0,
            **decided,
            OUTCOME_QUEUED: total - sum(decided.values()),
        }

    def newest(self, worker: str, task: str) -> Decision | None:
        """What became of the newest update of this worker for this task."""
        with self._engine.connect() as connection:
            row = connection.execute(
                _decisions()
                .where(journal.c.worker == worker, journal.c.task == task)
                .order_by(journal.c.position.desc())
                .limit(1)
            ).one_or_none()
        return _decision(row) if row else None

    def find(self, id_prefix: str) -> list[tuple[Position, Decision]]:
        """At most two updates whose id starts so: two mean that the prefix is too short."""
        prefix = id_prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._engine.connect() as connection:
            rows = connection.execute(
                _decisions().where(journal.c.update_id.like(prefix + "%", escape="\\")).limit(2)
            ).all()
        return [(_position(row), _decision(row)) for row in rows]

    @staticmethod
    def _known(connection: Connection, update_id: str, digest: str) -> Decision | None:
        row = connection.execute(_decisions().where(journal.c.update_id == update_id)).one_or_none()
        if row is not None and row.digest != digest:
            raise Refused(OUTCOME_REFUSED_ID_REUSED, f"update {update_id} is here already, with other bytes")
        return _decision(row) if row else None


def decide(connection: Connection, position: int, outcome: Outcome, version: int, reason: str, at: float) -> None:
    """The one line that gives a verdict; a second verdict on a position is an IntegrityError."""
    connection.execute(
        insert(verdicts).values(position=position, outcome=outcome, version=version, reason=reason, decided_at=at)
    )


def _decisions():  # type: ignore[no-untyped-def]
    columns = (verdicts.c.outcome, verdicts.c.version, verdicts.c.reason, verdicts.c.decided_at)
    return select(journal, *columns).join_from(journal, verdicts, isouter=True)


def _position(row: Row) -> Position:
    fields = {name: getattr(row, name) for name in Submission.__dataclass_fields__}
    return Position(row.position, Submission(**fields), row.received_at)


def _decision(row: Row) -> Decision:
    if row.outcome is None:
        return Decision(row.update_id, row.position)
    return Decision(row.update_id, row.position, row.outcome, row.version, row.reason, row.decided_at)
