"""Lower half of the walk: the one writer. Read next, merge or carry out, store (durable), move head, announce.

Liveness: every journal entry gets a verdict. What cannot be done is skipped with its reason; what the disk
does not allow just now is tried again, in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import time

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from coordinator.catalog import Version
from coordinator.draft import BlobName, Draft, Kept
from coordinator.erasure import Overtaken
from coordinator.errors import CoordinatorError, Fenced, Refused
from coordinator.history import History
from coordinator.journal import Position
from coordinator.reversal import Reversal
from coordinator.sweep import sweep_if_wanted
from coordinator.transition import Skipped, State, step
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import AlgebraError
from share_algo.codec import encode_block, encode_entry

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
IDLE_SECONDS_MAX = 5.0
"""How long a missed wake-up could cost; none is known to be missed."""


@dataclass(frozen=True)
class Announcement:
    """The newest visible version, and how far the journal is consumed."""

    head: Version
    consumed: int


class Integrator:
    def __init__(
        self,
        spec: pb.FederationSpec,
        engine: Engine,
        history: History,
        announce: Callable[[Announcement], None],
    ):
        self._spec, self._engine, self._history, self._announce = spec, engine, history, announce
        self._reversal = Reversal(spec, history)
        self._resume()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="integrate")

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
            except Fenced:
                return
            except (OSError, SQLAlchemyError, CoordinatorError) as error:
                log.error("cannot store a version (%s): trying again every %g s", error, RETRY_SECONDS)
                sure = False  # whether the commit came through: the disk will say
                self._stopping.wait(RETRY_SECONDS)
                continue
            if not worked:
                self._wake.wait(IDLE_SECONDS_MAX)

    def _resume(self) -> None:
        """Go on from what is on disk, which is the truth."""
        self._history.bases.forget()
        sweep_if_wanted(self._engine, self._history.blobs)
        self._head = self._history.catalog.head()
        self._consumed = self._history.journal.consumed()
        self._state = State(self._head.version, self._history.bases.at(self._head))
        self._history.bases.remember(self._head, self._state.basis)

    def _next(self) -> bool:
        position = self._history.journal.after(self._consumed)
        if position is None:
            return False
        if position.command is None:
            self._merge(position)
        else:
            self._carry_out(position, position.command)
        self._announce(self.announcement)
        return True

    def _merge(self, position: Position) -> None:
        state, result = self._tried(position, lambda: self._merged(position))
        if isinstance(result, Skipped):
            self._skip(position, result)
            return
        self._publish(position, result)
        self._state, self._consumed = state, position.position
        self._history.bases.remember(self._head, state.basis)

    def _carry_out(self, position: Position, command: pb.CommandRequest) -> None:
        """A command's version has another basis than the one in memory: it is read again from the disk."""
        while True:
            _, result = self._tried(position, lambda: (self._state, self._ordered(position, command)))
            if isinstance(result, Skipped):
                self._skip(position, result)
                return
            try:
                self._publish(position, result)
            except Overtaken:
                continue
            self._resume()
            return

    def _tried(
        self, position: Position, work: Callable[[], tuple[State, Draft | Skipped]]
    ) -> tuple[State, Draft | Skipped]:
        """Whatever one entry holds, it must not stop the rest."""
        try:
            return work()
        except (CoordinatorError, Refused, AlgebraError) as error:
            return self._state, Skipped(str(error))
        except (OSError, SQLAlchemyError, Fenced):  # the machine's, not the entry's: it is tried again
            raise
        except Exception as error:  # ours to mend
            log.exception("merging failed update=%s", position.submission.update_id)
            return self._state, Skipped(f"internal error: {type(error).__name__}: {error}")

    def _merged(self, position: Position) -> tuple[State, Draft | Skipped]:
        arrived = self._history.arrived(position, self._state.head - position.submission.base_version)
        state, result = step(self._state, arrived, self._spec.tolerance, self._spec.rank)
        if isinstance(result, Skipped):
            return state, result
        block = (self._kept(encode_block(result.block)),) if result.block else ()
        entry = self._kept(encode_entry(result.entry))
        merged = Ruling(position.position, pb.OUTCOME_MERGED)
        changed = {arrived.task: Kept(entry, arrived.labels, result.certificate)}
        return state, Draft(position.position, (result.record,), block, entries=changed, first=(merged,))

    def _ordered(self, position: Position, command: pb.CommandRequest) -> Draft:
        if command.HasField("rollback"):
            return self._reversal.rollback(position, command.rollback, self._head)
        return self._reversal.forget(position, command.forget, self._head)

    def _skip(self, position: Position, skipped: Skipped) -> None:
        self._history.journal.skip(position.position, skipped.reason, time())
        self._consumed = position.position
        log.warning("skipped id=%s position=%d: %s", position.submission.update_id, position.position, skipped.reason)

    def _publish(self, position: Position, draft: Draft) -> None:
        self._head = self._history.catalog.publish(self._head, draft, time())
        for r in draft.records:
            log.info("published version=%d kind=%s update=%s position=%d task=%s error=%.1e basis=%d",
                     self._head.version, pb.VersionKind.Name(r.kind), r.update_id, r.position, r.task,
                     r.relative_error, r.basis_out)  # fmt: skip

    def _kept(self, blob: bytes) -> BlobName:
        return BlobName(self._history.blobs.put(blob), len(blob))
