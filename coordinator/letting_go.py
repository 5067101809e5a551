"""Versions of which only the record is left, inside the commit that lets them go: erased or collected.

Afterwards no row names a blob that only they were made of; the sweep (sweep.py) then deletes the files. What is still
to be merged, or may be merged again, does not need them: where it did, a stand-in is named instead.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from coordinator.draft import LettingGo
from coordinator.tables import blocks, cursors, entries, gone, journal, restated, versions

SWEEP_WANTED, WIPE_WANTED = "sweep", "wipe"
"""Cursors that are there until it is done (sweep.py), of blobs and of the database. One asked for again has grown."""
ERASED, COLLECTED = "erased", "collected"

ROWS = 1000
"""Read at a time, of what may be millions."""


class Overtaken(Exception):
    """An entry was journaled that nobody has looked at: prepare it again."""


def let_go(connection: Connection, letting_go: LettingGo) -> None:
    """Raises Overtaken when there is an entry after `letting_go.consumed`; nothing is changed then."""
    if connection.execute(select(func.max(journal.c.position))).scalar() != letting_go.consumed:
        raise Overtaken
    for wanted in (SWEEP_WANTED, WIPE_WANTED):
        want(connection, wanted)
    for position, stand_in in letting_go.stand_ins.items():
        named = {**asdict(stand_in.blob), "norm": stand_in.norm}
        connection.execute(insert(restated).values(position=position, **named))
    if letting_go.versions:
        rows = [{"version": number, "why": letting_go.why} for number in sorted(letting_go.versions)]
        connection.execute(insert(gone), rows)
    _unname_blocks(connection)
    _unname_entries(connection)


def want(connection: Connection, name: str) -> None:
    again = update(cursors).where(cursors.c.name == name).values(position=cursors.c.position + 1)
    if not connection.execute(again).rowcount:
        connection.execute(insert(cursors).values(name=name, position=1))


def _unname_blocks(connection: Connection) -> None:
    here = versions.c.version.not_in(select(gone.c.version))
    needed = select(versions.c.generation, func.max(versions.c.blocks)).where(here).group_by(versions.c.generation)
    kept = dict(list(connection.execute(needed)))
    for generation in connection.execute(select(blocks.c.generation).distinct()).scalars().all():
        unused = blocks.c.ordinal >= kept.get(generation, 0)
        connection.execute(delete(blocks).where(blocks.c.generation == generation, unused))


def _unname_entries(connection: Connection) -> None:
    """An entry that is still valid belongs to the head, which can be read."""
    query = select(versions.c.version).where(versions.c.version.not_in(select(gone.c.version)))
    readable = connection.execute(query.order_by(versions.c.version)).scalars().all()
    e, unused = entries.c, []
    ended = select(e.version_from, e.task, e.version_until).where(e.version_until.is_not(None))
    for row in connection.execute(ended.execution_options(yield_per=ROWS)):  # the session is not silent for long
        first = bisect_left(readable, row.version_from)
        if first == len(readable) or readable[first] >= row.version_until:
            unused.append({"since": row.version_from, "of": row.task})
    if unused:
        connection.execute(
            delete(entries).where(e.version_from == bindparam("since"), e.task == bindparam("of")), unused
        )
