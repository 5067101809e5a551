"""Who is a member. A worker that joins again gets a newer incarnation; older ones may write nothing more."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select, update

from coordinator.errors import Refused
from coordinator.tables import cursors, members, writer
from protos.fedshare.v1.federation_pb2 import OUTCOME_REFUSED_INCARNATION

MEMBERS_MAX = 100_000
"""Names that are kept; of those who have left the oldest makes room for a new one."""
NEWEST_ERASED = "newest incarnation erased"
INCARNATION = select(members.c.incarnation).where(members.c.worker == bindparam("worker"))
"""The current one of a worker; no row where it is no member."""


@dataclass(frozen=True)
class Member:
    worker: str
    task: str
    incarnation: int
    joined_at: float
    left_at: float | None


class Members:
    def __init__(self, engine: Engine):
        self._engine, self._writer = engine, writer(engine)

    def join(self, worker: str, task: str, at: float) -> int:
        """The worker's new incarnation: newer than any that anybody of its name has had, also before an erasure."""
        with self._writer.begin() as connection:
            before = connection.execute(select(members).where(members.c.worker == worker)).one_or_none()
            if before is None:
                return self._first(connection, worker, task, at)
            incarnation = before.incarnation + 1
            connection.execute(
                update(members)
                .where(members.c.worker == worker)
                .values(task=task, incarnation=incarnation, joined_at=at, left_at=None)
            )
            return incarnation

    def leave(self, worker: str, incarnation: int, at: float) -> None:
        with self._writer.begin() as connection:
            must_be_current(incarnation_of(connection, worker), worker, incarnation)
            connection.execute(update(members).where(members.c.worker == worker).values(left_at=at))

    def everyone(self) -> list[Member]:
        with self._engine.connect() as connection:
            rows = connection.execute(select(members).order_by(members.c.joined_at)).all()
        return [Member(r.worker, r.task, r.incarnation, r.joined_at, r.left_at) for r in rows]

    @staticmethod
    def _first(connection: Connection, worker: str, task: str, at: float) -> int:
        if connection.execute(select(func.count()).select_from(members)).scalar_one() >= MEMBERS_MAX:
            _make_room(connection)
        incarnation = _newest_erased(connection) + 1
        connection.execute(insert(members).values(worker=worker, task=task, incarnation=incarnation, joined_at=at))
        return incarnation


def _make_room(connection: Connection) -> None:
    """Forgets who left longest ago: as after an erasure, it comes back newer than anything that still runs."""
    left = select(members.c.worker).where(members.c.left_at.is_not(None)).order_by(members.c.left_at).limit(1)
    worker = connection.execute(left).scalar_one_or_none()
    if worker is None:
        raise Refused(
            OUTCOME_REFUSED_INCARNATION,
            f"this federation has {MEMBERS_MAX:,} members, and none has left: join again when one has ended its work",
        )
    erase_member(connection, worker)


def erase_member(connection: Connection, worker: str) -> None:
    """Afterwards no row has its name, and what it still sends under an incarnation of before is refused."""
    incarnation = max(incarnation_of(connection, worker) or 0, _newest_erased(connection))
    connection.execute(delete(cursors).where(cursors.c.name == NEWEST_ERASED))
    connection.execute(insert(cursors).values(name=NEWEST_ERASED, position=incarnation))
    connection.execute(delete(members).where(members.c.worker == worker))


def _newest_erased(connection: Connection) -> int:
    query = select(cursors.c.position).where(cursors.c.name == NEWEST_ERASED)
    return connection.execute(query).scalar_one_or_none() or 0


def incarnation_of(connection: Connection, worker: str) -> int | None:
    """The current one. To be read inside the transaction that writes."""
    return connection.execute(INCARNATION, {"worker": worker}).scalar_one_or_none()


def must_be_current(current: int | None, worker: str, incarnation: int) -> None:
    """current: what INCARNATION finds. Raises Refused."""
    if current is None:
        raise Refused(OUTCOME_REFUSED_INCARNATION, f"{worker} is not a member: join first")
    if current != incarnation:
        raise Refused(
            OUTCOME_REFUSED_INCARNATION,
            f"incarnation {incarnation} of {worker} is no longer current: incarnation {current} has joined since",
        )
