"""What an erasure deletes from the database, inside the commit that shows its version.

Afterwards no row says what the erased updates were: not their task, worker, labels or metrics, only that there was an
update with this id. What began with an erased task says that it did, without its name. No row names their blobs;
versions that held anything of them are let go (letting_go.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, delete, select, update

from coordinator.draft import Erasure
from coordinator.heirs import ERASED_TASK, without
from coordinator.letting_go import WIPE_WANTED, want
from coordinator.members import erase_member
from coordinator.tables import commands, journal, members, metrics, past_verdicts, restated, verdicts, versions
from protos.fedshare.v1.federation_pb2 import CommandRequest

ROWS_AT_ONCE = 100
"""So many are looked at without a word: PostgreSQL ends a transaction that is silent (database.IDLE_SECONDS_MAX)."""
JUDGED = "a judgement on an update that is erased"
BLANK = {"worker": "", "task": "", "metrics": {}, "warm_start": ""}
"""Of what was said of an update, in the journal and in a version's record."""


def erase(connection: Connection, erasure: Erasure) -> None:
    want(connection, WIPE_WANTED)  # of what is blanked
    tasks, ids = _those_of(connection, erasure.positions)
    _blank_updates(connection, erasure.positions)
    tasks -= set(connection.execute(select(journal.c.task).distinct()).scalars())
    _blank_warm_starts(connection, tasks)
    _blank_records(connection, erasure.positions, tasks)
    _blank_forgets(connection, {erasure.task, *tasks} - {""}, erasure.worker, erasure.until)
    _blank_verdicts(connection, ids, tasks)
    _blank_people(connection, erasure.task, erasure.worker)


def _those_of(connection: Connection, positions: frozenset[int]) -> tuple[set[str], set[str]]:
    """(tasks, ids), of all that say whose they are. One by one: databases bound how many a query may name."""
    query = select(journal.c.task, journal.c.update_id).where(journal.c.position == bindparam("position"))
    rows = [connection.execute(query, {"position": p}).one() for p in positions]
    return {row.task for row in rows if row.task}, {row.update_id for row in rows}


def _blank_updates(connection: Connection, positions: frozenset[int]) -> None:
    """What was said of them before they were erased goes, too."""
    for position in positions:
        connection.execute(update(journal).where(journal.c.position == position).values(**BLANK, labels=[]))
        connection.execute(update(past_verdicts).where(past_verdicts.c.position == position).values(reason=""))
        connection.execute(delete(restated).where(restated.c.position == position))


def _blank_warm_starts(connection: Connection, tasks: set[str]) -> None:
    """What began with a task of which nothing is left says that much, and not with which."""
    for task in tasks:
        named = journal.c.warm_start == task
        connection.execute(update(journal).where(named).values(warm_start=ERASED_TASK))


def _blank_records(connection: Connection, positions: frozenset[int], tasks: set[str]) -> None:
    for row in _paged(connection, select(versions.c.version, versions.c.record), versions.c.version):
        blanked = [_blanked(record, positions, tasks) for record in row.record]
        if blanked != row.record:
            connection.execute(update(versions).where(versions.c.version == row.version).values(record=blanked))


def _blanked(record: dict[str, Any], positions: frozenset[int], tasks: set[str]) -> dict[str, Any]:
    """One of a version's records."""
    if record["position"] in positions:
        return record | BLANK | {"norm": 0.0}  # by which others would be judged
    began = {"warm_start": ERASED_TASK} if record.get("warm_start") in tasks else {}
    return record | began | {"note": without(record.get("note", ""), tasks)}


def _blank_forgets(connection: Connection, tasks: set[str], worker: str, until: int) -> None:
    """What was asked to be forgotten, here or before."""
    for row in _paged(connection, select(commands).where(commands.c.position <= until), commands.c.position):
        request = json_format.Parse(row.request, CommandRequest())
        forget = request.forget
        if forget.task in tasks or (worker and forget.worker == worker):
            forget.task = forget.worker = ""
            said = json_format.MessageToJson(request)
            connection.execute(update(commands).where(commands.c.position == row.position).values(request=said))


def _blank_verdicts(connection: Connection, ids: set[str], tasks: set[str]) -> None:
    """Those on commands: a judgement on one of these updates says whose it was, and a forget who began with it."""
    joined = select(commands.c.request, verdicts.c.position, verdicts.c.reason).join_from(
        commands, verdicts, commands.c.position == verdicts.c.position
    )
    for row in _paged(connection, joined, verdicts.c.position):
        judged = json_format.Parse(row.request, CommandRequest()).judge.update_id
        reason = JUDGED if judged in ids else without(row.reason, tasks)
        if reason != row.reason:
            connection.execute(update(verdicts).where(verdicts.c.position == row.position).values(reason=reason))


def _blank_people(connection: Connection, task: str, worker: str) -> None:
    if worker:
        connection.execute(delete(metrics).where(metrics.c.worker == worker))
        erase_member(connection, worker)
    if task:
        connection.execute(delete(metrics).where(metrics.c.task == task))
        connection.execute(update(members).where(members.c.task == task).values(task=""))


def _paged(connection: Connection, query: Select, key: ColumnElement[int]) -> Iterator[Row]:
    """The rows of a query that selects this key, in its order. They may be changed meanwhile, but for the key."""
    after = -1
    while page := connection.execute(query.where(key > after).order_by(key).limit(ROWS_AT_ONCE)).all():
        yield from page
        after = page[-1]._mapping[key]
