"""What an erasure deletes from the database, inside the commit that shows its version.

Afterwards no row says what the erased updates were: not their task, worker, labels or metrics, only that there was an
update with this id. No row names their blobs, nor those of versions that held anything of them; the sweep
(sweep.py) then deletes the files.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format
from sqlalchemy import Connection, delete, exists, func, insert, or_, select, update

from coordinator.draft import Erasure
from coordinator.tables import blocks, commands, cursors, entries, gone, journal, members, metrics, restated, versions
from protos.fedshare.v1.federation_pb2 import CommandRequest

ERASED = "erased"
SWEEP_WANTED = "sweep"


class Overtaken(Exception):
    """An entry was journaled that the erasure has not looked at: prepare it again."""


def erase(connection: Connection, erasure: Erasure) -> None:
    """Raises Overtaken when there is an entry after `erasure.consumed`; nothing is changed then."""
    if connection.execute(select(func.max(journal.c.position))).scalar() != erasure.consumed:
        raise Overtaken
    for position, blob in erasure.stand_ins.items():
        connection.execute(insert(restated).values(position=position, digest=blob.digest, nbytes=blob.nbytes))
    _blank_updates(connection, erasure.positions)
    _blank_commands(connection, erasure.task, erasure.worker)
    _blank_people(connection, erasure.task, erasure.worker)
    let_go(connection, erasure.versions, ERASED)


def let_go(connection: Connection, numbers: Iterable[int], why: str) -> None:
    """Of these versions only the record is left. What no other version is made of is no longer named by any row."""
    connection.execute(delete(cursors).where(cursors.c.name == SWEEP_WANTED))
    connection.execute(insert(cursors).values(name=SWEEP_WANTED, position=1))
    for number in sorted(numbers):
        connection.execute(insert(gone).values(version=number, why=why))
    here = versions.c.version.not_in(select(gone.c.version))
    needed = select(versions.c.generation, func.max(versions.c.blocks).label("blocks")).where(here)
    kept = {row.generation: row.blocks for row in connection.execute(needed.group_by(versions.c.generation))}
    for generation in connection.execute(select(blocks.c.generation).distinct()).scalars().all():
        unused = blocks.c.ordinal >= kept.get(generation, 0)
        connection.execute(delete(blocks).where(blocks.c.generation == generation, unused))
    until = or_(entries.c.version_until.is_(None), versions.c.version < entries.c.version_until)
    connection.execute(
        delete(entries).where(~exists().where(here, versions.c.version >= entries.c.version_from, until))
    )


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


def _blank_commands(connection: Connection, task: str, worker: str) -> None:
    for row in connection.execute(select(commands)).all():
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
