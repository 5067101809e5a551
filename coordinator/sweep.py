"""Delete the blobs that no row names: after an erasure, and what crashes left behind.

A sweep that was cut off is taken up at the next start: it is wanted until it has gone through. So is wiping the
database's own files, which others who read it may hold up.
"""

from __future__ import annotations

import logging

from sqlalchemy import Engine, delete, select

from coordinator.blobs import Blobs
from coordinator.database import wipe_deleted
from coordinator.letting_go import SWEEP_WANTED, WIPE_WANTED
from coordinator.tables import blocks, commands, cursors, entries, journal, restated, verdicts, writer
from protos.fedshare.v1.federation_pb2 import OUTCOME_ERASED

log = logging.getLogger(__name__)


def named(engine: Engine) -> set[str]:
    """Digests of all blobs that are part of a version, or of an update that can still be read."""
    erased = select(verdicts.c.position).where(verdicts.c.outcome == OUTCOME_ERASED)
    no_blob = (erased, select(restated.c.position), select(commands.c.position))
    updates = select(journal.c.digest).where(*(journal.c.position.not_in(others) for others in no_blob))
    with engine.connect() as connection:
        each = (updates, select(restated.c.digest), select(blocks.c.digest), select(entries.c.digest))
        return {digest for query in each for digest in connection.execute(query).scalars()}


def sweep_if_wanted(engine: Engine, blobs: Blobs) -> int:
    """How many blobs were deleted. Afterwards the database's own files hold nothing deleted either.

    Where another session still reads that, it stays wanted: neither is anybody kept waiting nor is it forgotten.
    """
    wanted = _wanted(engine)
    deleted = 0
    if SWEEP_WANTED in wanted:
        deleted = blobs.sweep(lambda: named(engine), lambda: _must_be_ours(engine))
        log.info("swept: %d blobs deleted", deleted)
    if WIPE_WANTED in wanted and not wipe_deleted(engine):
        del wanted[WIPE_WANTED]
        log.warning("what was erased is still in the database's files: a session with it reads that, end it")
    if wanted:
        with writer(engine).begin() as connection:
            for name, position in wanted.items():
                connection.execute(delete(cursors).where(cursors.c.name == name, cursors.c.position == position))
    return deleted


def _wanted(engine: Engine) -> dict[str, int]:
    query = select(cursors).where(cursors.c.name.in_((SWEEP_WANTED, WIPE_WANTED)))
    with engine.connect() as connection:
        return {row.name: row.position for row in connection.execute(query)}


def _must_be_ours(engine: Engine) -> None:
    """Raises Fenced."""
    with writer(engine).begin():
        return
