"""The journal: every update and every command that has a receipt, in order, and the verdict on each.

It is the queue between `receive` and `integrate`. Rows are only ever added, and only an erasure blanks what one
says. One line appends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

from google.protobuf import json_format
from sqlalchemy import Connection, Engine, Row, bindparam, func, insert, or_, select

from coordinator.admit import base_is_gone
from coordinator.draft import BlobName, StandIn
from coordinator.errors import Refused
from coordinator.letting_go import SWEEP_WANTED, want
from coordinator.members import INCARNATION, must_be_current
from coordinator.tables import commands, gone, journal, restated, verdicts, writer
from coordinator.together import Together
from coordinator.verdicts import alive_at, moves_of, past_of
from protos.chunks import digest_of
from protos.fedshare.v1.federation_pb2 import (
    OUTCOME_BUFFERED,
    OUTCOME_MERGED,
    OUTCOME_QUARANTINED,
    OUTCOME_QUEUED,
    OUTCOME_REFUSED_ID_REUSED,
    OUTCOME_RETRY_BUSY,
    OUTCOME_REVERTED,
    CommandRequest,
    Outcome,
)

ENTRIES_AT_ONCE = 500
MERGEABLE = (OUTCOME_MERGED, OUTCOME_REVERTED, OUTCOME_BUFFERED, OUTCOME_QUARANTINED)
"""Verdicts on updates that may be merged yet, or again, by a rollback, a forget or a judgement."""


@dataclass(frozen=True)
class Submission:
    """One update as it is journaled; its tensors are in the blob `digest`. A command has an id and a digest only."""

    update_id: str
    digest: str
    nbytes: int
    worker: str = ""
    incarnation: int = 0
    task: str = ""
    base_version: int = 0
    labels: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    warm_start: str = ""


@dataclass(frozen=True)
class Position:
    """A submission and its place in the journal. stand_in: the same update for version 0."""

    position: int
    submission: Submission
    received_at: float
    command: CommandRequest | None = None
    stand_in: StandIn | None = None


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
        self._appended = Together(self._append)
        self._door = Event()
        self._door.set()

    def append(self, submission: Submission, at: float) -> tuple[Decision, bool]:
        """Durable when it returns: (decision, was it here before). A repeated id changes nothing.

        Submissions that arrive at the same time share one commit.
        """
        return self._appended((submission, at))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Meanwhile nothing new is added: whoever sends is told to come again."""
        self._door.clear()
        try:
            yield
        finally:
            self._door.set()

    def expect(self, submission: Submission) -> Decision | None:
        """The decision on an update that is here already; None for a new one. What `append` would refuse is refused."""
        with self._engine.connect() as connection:
            return _Seen(connection, submission).expected()

    def command(self, request: CommandRequest, at: float) -> tuple[Decision, bool]:
        """The same as `append` for a command."""
        wire = request.SerializeToString(deterministic=True)
        submission = Submission(request.command_id, digest_of(wire), len(wire))
        with self._writer.begin() as connection:
            seen = _Seen(connection, submission)
            if before := seen.here():
                return before, True
            self._must_be_open()
            added = seen.add(at)
            said = json_format.MessageToJson(request)
            connection.execute(insert(commands).values(position=added.position, request=said))
        return added, False

    def want_sweep(self) -> None:
        """Of a blob that was put and is named by no entry. Durable when it returns."""
        with self._writer.begin() as connection:
            want(connection, SWEEP_WANTED)

    def _append(self, arrivals: Sequence[tuple[Submission, float]]) -> list[tuple[Decision, bool] | Refused]:
        results: list[tuple[Decision, bool] | Refused] = []
        with self._writer.begin() as connection:
            for submission, at in arrivals:
                seen = _Seen(connection, submission)
                try:
                    if before := seen.expected():
                        results.append((before, True))
                        continue
                    self._must_be_open()
                    results.append((seen.add(at), False))
                except Refused as refused:
                    results.append(refused)
        return results

    def _must_be_open(self) -> None:
        if not self._door.is_set():
            raise Refused(OUTCOME_RETRY_BUSY, "versions are being let go just now")

    def after(self, position: int, limit: int) -> list[Position]:
        """The next entries to be consumed, at most `limit`."""
        return [found for found, _ in self.entries(position + 1, limit)]

    def entries(self, first: int, limit: int) -> list[tuple[Position, Decision]]:
        """Entries from the position `first` on, at most `limit`, with what has become of each."""
        query = _decisions().where(journal.c.position >= first).order_by(journal.c.position).limit(limit)
        with self._engine.connect() as connection:
            return [(_position(row), _decision(row)) for row in connection.execute(query)]

    def every(self) -> Iterator[tuple[Position, Decision]]:
        """All entries in order."""
        first = 1
        while found := self.entries(first, ENTRIES_AT_ONCE):
            yield from found
            first = found[-1][0].position + 1

    def at(self, position: int) -> Position:
        """The entry at a position that is known to be there."""
        return self.entries(position, limit=1)[0][0]

    def updates_of(self, task: str, worker: str, before: int) -> frozenset[int]:
        """Positions below `before` of the updates of this task, or of this worker, that say whose they are."""
        whose = journal.c.task == task if task else journal.c.worker == worker
        with self._engine.connect() as connection:
            return frozenset(
                connection.execute(select(journal.c.position).where(whose, journal.c.position < before)).scalars()
            )

    def begun_with(self, positions: Collection[int], among: Collection[int]) -> list[str]:
        """Tasks of updates `among` these that began with the coefficients of a task of those at `positions`."""
        columns = (journal.c.position, journal.c.task, journal.c.warm_start)
        with self._engine.connect() as connection:
            rows = connection.execute(select(*columns).where(journal.c.task != "")).all()
        tasks = {row.task for row in rows if row.position in positions}
        return sorted({row.task for row in rows if row.position in among and row.warm_start in tasks})

    def newest_position(self) -> int:
        with self._engine.connect() as connection:
            return connection.execute(_NEWEST).scalar_one()

    def mergeable(self, after: int) -> list[tuple[int, int, str]]:
        """(position, base version, task) of updates after a position that may be merged yet, or again, and that have no
        stand-in."""
        columns = (journal.c.position, journal.c.base_version, journal.c.task)
        query = select(*columns).select_from(_joined()).where(
            journal.c.position > after,
            commands.c.position.is_(None),
            restated.c.position.is_(None),
            or_(verdicts.c.outcome.is_(None), verdicts.c.outcome.in_(MERGEABLE)),
        )  # fmt: skip
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query.order_by(journal.c.position))]

    def with_outcome(self, outcome: Outcome) -> set[int]:
        """Positions of the entries that have come to it."""
        query = select(verdicts.c.position).where(verdicts.c.outcome == outcome)
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def quarantined(self) -> list[tuple[Position, Decision]]:
        """Updates that wait for somebody's judgement, oldest first."""
        query = _decisions().where(verdicts.c.outcome == OUTCOME_QUARANTINED).order_by(journal.c.position)
        with self._engine.connect() as connection:
            return [(_position(row), _decision(row)) for row in connection.execute(query)]

    def waiting_commands(self, consumed: int) -> set[str]:
        """What the commands after a position ask for."""
        query = select(commands.c.request).where(commands.c.position > consumed)
        with self._engine.connect() as connection:
            asked = [json_format.Parse(said, CommandRequest()) for said in connection.execute(query).scalars()]
        return {request.WhichOneof("command") for request in asked}

    def alive_at(self, version: int) -> set[int]:
        """Positions of the updates that a version was made of."""
        with self._engine.connect() as connection:
            return alive_at(connection, version)

    def past(self, position: int) -> list[Decision]:
        """Verdicts on an entry that no longer hold, oldest first."""
        with self._engine.connect() as connection:
            return [Decision("", position, *past) for past in past_of(connection, position)]

    def consumed(self) -> int:
        """Every entry up to this position has its verdict."""
        with self._engine.connect() as connection:
            return connection.execute(select(func.coalesce(func.max(verdicts.c.position), 0))).scalar_one()

    def waiting(self, task: str) -> list[Position]:
        """Updates in a task's buffer, oldest first."""
        query = _decisions().where(journal.c.task == task, verdicts.c.outcome == OUTCOME_BUFFERED)
        with self._engine.connect() as connection:
            return [_position(row) for row in connection.execute(query.order_by(journal.c.position))]

    def counts(self) -> dict[Outcome, int]:
        """How many updates have come to each outcome."""
        no_command = verdicts.c.position.not_in(select(commands.c.position))
        query = select(verdicts.c.outcome, func.count()).where(no_command).group_by(verdicts.c.outcome)
        with self._engine.connect() as connection:
            decided = {outcome: count for outcome, count in connection.execute(query).all()}
            total = connection.execute(select(func.count()).select_from(journal)).scalar_one()
            no_updates = connection.execute(select(func.count()).select_from(commands)).scalar_one()
        queued = total - no_updates - sum(decided.values())
        return {**dict.fromkeys(Outcome.values(), 0), **decided, OUTCOME_QUEUED: queued}

    def commands_queued(self) -> int:
        """How many commands wait for their turn."""
        undecided = commands.c.position.not_in(select(verdicts.c.position))
        with self._engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(commands).where(undecided)).scalar_one()

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

    def moves_of(self, worker: str, task: str) -> list[tuple[int, int, bool]]:
        """(position, version, is in it and those that follow) of updates of this worker for this task, in the order of
        versions."""
        positions = select(journal.c.position).where(journal.c.worker == worker, journal.c.task == task)
        with self._engine.connect() as connection:
            return moves_of(connection, positions)

    def find(self, id_prefix: str) -> list[tuple[Position, Decision]]:
        """At most two updates whose id starts so: two mean that the prefix is too short."""
        prefix = id_prefix.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        with self._engine.connect() as connection:
            rows = connection.execute(
                _decisions().where(journal.c.update_id.like(prefix + "%", escape="\\")).limit(2)
            ).all()
        return [(_position(row), _decision(row)) for row in rows]


class ReadAhead:
    """Entries for whoever goes through all of them, about in order: some hundred are read at a time, not one."""

    def __init__(self, journal: Journal):
        self._journal, self._read = journal, dict[int, Position]()

    def at(self, position: int) -> Position:
        """As it was when it, or one some hundred before it, was asked for."""
        if position not in self._read:
            self._read = {found.position: found for found, _ in self._journal.entries(position, ENTRIES_AT_ONCE)}
        return self._read[position]


class _Seen:
    """What the journal, the members and the versions say about one submission: one statement of one transaction."""

    def __init__(self, connection: Connection, submission: Submission):
        self._connection, self._submission = connection, submission
        of = {"id": submission.update_id, "worker": submission.worker, "version": submission.base_version}
        self._digest, self._incarnation, self._gone, self._newest = connection.execute(_SEEN, of).one()

    def expected(self) -> Decision | None:
        """None: it is new, and may be added. Raises Refused."""
        if before := self.here():
            return before
        must_be_current(self._incarnation, self._submission.worker, self._submission.incarnation)
        must_be_here(self._gone, self._submission.base_version)
        return None

    def here(self) -> Decision | None:
        """Raises Refused when its id is another's."""
        update_id, digest = self._submission.update_id, self._digest
        if digest is None:
            return None
        if digest != self._submission.digest:
            raise Refused(OUTCOME_REFUSED_ID_REUSED, _taken(self._submission))
        return _decision(self._connection.execute(_BY_ID, {"id": update_id}).one())

    def add(self, at: float) -> Decision:
        """The one line that appends: the next position is this submission's."""
        position = self._newest + 1
        self._connection.execute(_APPEND, {**vars(self._submission), "position": position, "received_at": at})
        return Decision(self._submission.update_id, position)


def _taken(submission: Submission) -> str:
    if submission.worker:
        return f"update {submission.update_id} is here already, with other bytes"
    return (
        f"command {submission.update_id} is here already, and is another one: leave its id out, and it gets one of"
        " its own"
    )


def must_be_here(why_gone: str | None, base_version: int) -> None:
    """No update is journaled whose base version nobody can read any more. Raises Refused."""
    if why_gone is not None:
        base_is_gone(base_version, why_gone)


def _decisions():
    columns = (
        *(verdicts.c.outcome, verdicts.c.version, verdicts.c.reason, verdicts.c.decided_at),
        *(commands.c.request, *(column.label(f"stand_in_{column.name}") for column in restated.c)),
    )
    return select(journal, *columns).select_from(_joined())


def _joined():
    joined = journal
    for other in (verdicts, commands, restated):
        joined = joined.outerjoin(other, journal.c.position == other.c.position)  # type: ignore[assignment]
    return joined


_NEWEST = select(func.coalesce(func.max(journal.c.position), 0))
_SEEN = select(
    select(journal.c.digest).where(journal.c.update_id == bindparam("id")).scalar_subquery(),
    INCARNATION.scalar_subquery(),
    select(gone.c.why).where(gone.c.version == bindparam("version")).scalar_subquery(),
    _NEWEST.scalar_subquery(),
)
_BY_ID = _decisions().where(journal.c.update_id == bindparam("id"))
_APPEND = insert(journal)


def _position(row: Row) -> Position:
    fields = {name: getattr(row, name) for name in Submission.__dataclass_fields__}
    command = json_format.Parse(row.request, CommandRequest()) if row.request else None
    stand_in = None
    if row.stand_in_digest:
        stand_in = StandIn(BlobName(row.stand_in_digest, row.stand_in_nbytes), row.stand_in_norm)
    return Position(row.position, Submission(**fields), row.received_at, command, stand_in)


def _decision(row: Row) -> Decision:
    if row.outcome is None:
        return Decision(row.update_id, row.position)
    return Decision(row.update_id, row.position, row.outcome, row.version, row.reason, row.decided_at)
