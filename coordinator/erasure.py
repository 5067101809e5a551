"""What an erasure deletes from the database, inside the commit that shows its version.

Afterwards no row says what the erased updates were: not their task, worker, labels or metrics, only that there was an
update with this id. What began with an erased task says that it did, without its name. No row names their blobs;
versions that held anything of them are let go (letting_go.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from sqlalchemy import Connection, Row, bindparam, delete, select, update

from coordinator.draft import Erasure
from coordinator.tables import commands, journal, members, metrics, restated, versions
from protos.fedshare.v1.federation_pb2 import CommandRequest

ERASED_TASK = "(erased)"
"""No task can have this name."""


def erase(connection: Connection, erasure: Erasure) -> None:
    tasks = _tasks_of(connection, erasure.positions)
    _blank_updates(connection, erasure.positions)
    _blank_warm_starts(connection, tasks)
    _blank_commands(connection, erasure.task, erasure.worker, erasure.until)
    _blank_people(connection, erasure.task, erasure.worker)


def _blank_updates(connection: Connection, positions: frozenset[int]) -> None:
    blank = {"worker": "", "task": "", "labels": [], "metrics": {}, "warm_start": ""}
    for position in positions:
        connection.execute(update(journal).where(journal.c.position == position).values(**blank))
        connection.execute(delete(restated).where(restated.c.position == position))
    for row in connection.execute(select(versions.c.version, versions.c.record)).all():
        _restate(connection, row, lambda r: r["position"] in positions, {"worker": "", "task": "", "metrics": {},
                                                                         "warm_start": ""})  # fmt: skip


def _tasks_of(connection: Connection, positions: frozenset[int]) -> set[str]:
    """Every update counts that says whose it is; one by one, as databases bound how many a query may name."""
    query = select(journal.c.task).where(journal.c.position == bindparam("position"), journal.c.task != "")
    return {task for p in positions for task in connection.execute(query, {"position": p}).scalars()}


def _blank_warm_starts(connection: Connection, tasks: set[str]) -> None:
    """What began with a task of which nothing is left says that much, and not with which."""
    left = set(connection.execute(select(journal.c.task).distinct()).scalars())
    for task in tasks - left:
        named = journal.c.warm_start == task
        connection.execute(update(journal).where(named).values(warm_start=ERASED_TASK))
    for row in connection.execute(select(versions.c.version, versions.c.record)).all():
        _restate(connection, row, lambda r: r.get("warm_start") in tasks - left, {"warm_start": ERASED_TASK})


def _restate(connection: Connection, row: Row, which: Callable[[dict[str, Any]], bool], change: dict[str, Any]) -> None:
    """One version's records, where any is to be changed."""
    restated_records = [r | change if which(r) else r for r in row.record]
    if restated_records != row.record:
        connection.execute(update(versions).where(versions.c.version == row.version).values(record=restated_records))


def _blank_commands(connection: Connection, task: str, worker: str, until: int) -> None:
    for row in connection.execute(select(commands).where(commands.c.position <= until)).all():
        request = json_format.Parse(row.request, CommandRequest())
        if (request.forget.task, request.forget.worker) == (task, worker) and (task or worker):
            request.forget.task = request.forget.worker = ""
            said = json_format.MessageToJson(request)
            connection.execute(update(commands).where(commands.c.position == row.position).values(request=said))


def _blank_people(connection: Connection, task: str, worker: str) -> None:
    if worker:
        connection.execute(delete(metrics).where(metrics.c.worker == worker))
        connection.execute(delete(members).where(members.c.worker == worker))
    if task:
        connection.execute(delete(metrics).where(metrics.c.task == task))
        connection.execute(update(members).where(members.c.task == task).values(task=""))
