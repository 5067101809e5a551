"""What an erasure deletes from the database, inside the commit that shows its version.

Afterwards no row says what the erased updates were: not their task, worker, labels or metrics, only that there was an
update with this id. No row names their blobs; versions that held anything of them are let go (letting_go.py).
"""

from __future__ import annotations

from google.protobuf import json_format
from sqlalchemy import Connection, delete, select, update

from coordinator.draft import Erasure
from coordinator.tables import commands, journal, members, metrics, restated, versions
from protos.fedshare.v1.federation_pb2 import CommandRequest


def erase(connection: Connection, erasure: Erasure) -> None:
    _blank_updates(connection, erasure.positions)
    _blank_commands(connection, erasure.task, erasure.worker, erasure.until)
    _blank_people(connection, erasure.task, erasure.worker)


def _blank_updates(connection: Connection, positions: frozenset[int]) -> None:
    blank = {"worker": "", "task": "", "labels": [], "metrics": {}}
    for position in positions:
        connection.execute(update(journal).where(journal.c.position == position).values(**blank))
        connection.execute(delete(restated).where(restated.c.position == position))
    for row in connection.execute(select(versions.c.version, versions.c.record)).all():
        blanked = [
            r | {"worker": "", "task": "", "metrics": {}} if r["position"] in positions else r for r in row.record
        ]
        if blanked != row.record:
            connection.execute(update(versions).where(versions.c.version == row.version).values(record=blanked))


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
