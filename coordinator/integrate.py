"""Lower half of the walk: the one writer. Read next, merge, store (durable), move head, announce.

Liveness: every journal entry gets a verdict. What cannot be merged is skipped with its reason; what the disk
does not allow just now is tried again, in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import time

from sqlalchemy.exc import SQLAlchemyError

from coordinator.blobs import Blobs
from coordinator.catalog import BlobName, Catalog, Version
from coordinator.errors import CoordinatorError
from coordinator.journal import Journal, Position
from coordinator.transition import Arrived, Merged, Record, Skipped, State, step
from protos.fedshare.v1.federation_pb2 import FederationSpec
from share_algo import AlgebraError, Basis
from share_algo.codec import decode_block, decode_update, encode_block, encode_entry

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
IDLE_SECONDS_MAX = 5.0
"""How long a missed wake-up could cost; none is known to be missed."""


@dataclass(frozen=True)
class Announcement:
    """The newest visible version, and how far the journal is consumed."""

    head: Version
    consumed: int


@dataclass(frozen=True)
class _Encoded:
    """A merge as it will be stored. No block: nothing was added to the basis."""

    block: bytes | None
    entry: bytes
    record: Record


def _encoded(merged: Merged) -> _Encoded:
    return _Encoded(encode_block(merged.block) if merged.block else None, encode_entry(merged.entry), merged.record)


class Integrator:
    def __init__(
        self,
        spec: FederationSpec,
        journal: Journal,
        catalog: Catalog,
        blobs: Blobs,
        announce: Callable[[Announcement], None],
    ):
        self._spec, self._journal, self._catalog, self._blobs = spec, journal, catalog, blobs
        self._announce = announce
        self._resume()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="integrate")

    @property
    def basis(self) -> Basis:
        """Of the newest visible version. Immutable: any thread may keep it."""
        return self._state.basis

    @property
    def announcement(self) -> Announcement:
        return Announcement(self._head, self._consumed)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something new in the journal."""
        self._wake.set()

    def stop(self) -> None:
        """Finish the entry at hand, then end. What is queued stays queued, on disk."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        sure = True
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if not sure:
                    self._resume()
                sure, worked = True, self._next()
            except (OSError, SQLAlchemyError, CoordinatorError) as error:
                log.error("cannot store a version (%s): trying again every %g s", error, RETRY_SECONDS)
                sure = False  # whether the commit came through: the disk will say
                self._stopping.wait(RETRY_SECONDS)
                continue
            if not worked:
                self._wake.wait(IDLE_SECONDS_MAX)

    def _resume(self) -> None:
        """Go on from what is on disk, which is the truth."""
        self._head = self._catalog.head()
        self._state = State(self._head.version, self._stored_basis())
        self._consumed = self._journal.consumed()

    def _next(self) -> bool:
        position = self._journal.after(self._consumed)
        if position is None:
            return False
        state, result = self._merged(position)
        head = self._store(position, result)
        self._state, self._head, self._consumed = state, head, position.position
        self._announce(self.announcement)
        return True

    def _merged(self, position: Position) -> tuple[State, _Encoded | Skipped]:
        """Whatever one entry holds, it must not stop the rest."""
        try:
            arrived = self._arrived(position)
            state, result = step(self._state, arrived, self._spec.tolerance, self._spec.rank)
            return state, result if isinstance(result, Skipped) else _encoded(result)
        except (CoordinatorError, AlgebraError) as error:
            return self._state, Skipped(str(error))
        except (OSError, SQLAlchemyError):  # the machine's, not the entry's: it is tried again
            raise
        except Exception as error:  # ours to mend
            log.exception("merging failed update=%s", position.submission.update_id)
            return self._state, Skipped(f"internal error: {type(error).__name__}: {error}")

    def _arrived(self, position: Position) -> Arrived:
        s = position.submission
        base = self._catalog.get(s.base_version)
        if base is None:
            raise CoordinatorError(f"version {s.base_version} is gone")
        return Arrived(
            position=position.position,
            update_id=s.update_id,
            worker=s.worker,
            task=s.task,
            base_version=s.base_version,
            base_blocks=base.blocks,
            update=decode_update(self._blobs.get(s.digest)),
            nbytes=s.nbytes,
            metrics=s.metrics,
        )

    def _store(self, position: Position, result: _Encoded | Skipped) -> Version:
        update_id = position.submission.update_id
        if isinstance(result, Skipped):
            self._journal.skip(position.position, result.reason, time())
            log.warning("skipped update=%s position=%d: %s", update_id, position.position, result.reason)
            return self._head
        block = self._kept(result.block) if result.block else None
        entry = self._kept(result.entry)
        head = self._catalog.publish(self._head, result.record, block, entry, position.submission.labels, time())
        log.info("merged update=%s position=%d version=%d task=%s error=%.1e basis=%d", update_id,
                 position.position, head.version, result.record.task, result.record.relative_error,
                 result.record.basis_out)  # fmt: skip
        return head

    def _kept(self, blob: bytes) -> BlobName:
        return BlobName(self._blobs.put(blob), len(blob))

    def _stored_basis(self) -> Basis:
        names = self._catalog.blocks_of(self._head)
        return Basis(tuple(decode_block(self._blobs.get(name.digest)) for name in names))
