"""Lower half of the walk: the one writer. Read what waits, merge or carry out, store (durable), move head, announce.

Updates that wait are merged together, into one version. Liveness: every journal entry gets a verdict. What cannot be
done is skipped with its reason; what the disk does not allow just now is tried again, in order.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count, takewhile
from time import monotonic, sleep, time

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from coordinator.batch import BATCH_MAX, Batch
from coordinator.catalog import Version
from coordinator.compaction import compaction
from coordinator.draft import Draft
from coordinator.errors import CoordinatorError, Fenced, Refused
from coordinator.history import History
from coordinator.journal import Position
from coordinator.judgement import judgement
from coordinator.letting_go import Overtaken
from coordinator.quarantine import NORMS_MAX
from coordinator.retention import caught_up, collection
from coordinator.reversal import Reversal
from coordinator.soundness import newest_sound
from coordinator.sweep import sweep_if_wanted
from coordinator.transition import State
from coordinator.upkeep import Upkeep
from coordinator.verdicts import IN_NO_VERSION, Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import AlgebraError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
QUIET_SECONDS = 0.01
"""No arrival for so long: nobody's receipt is waited for."""
GATHER_SECONDS_MAX = 0.1
"""So much later a version may come for the sake of arrivals."""
IDLE_SECONDS_MAX = 5.0
"""How long a missed wake-up could cost; none is known to be missed."""
CATCH_UPS_MAX = 5
"""So often what was journaled meanwhile is taken in, before nothing more may come until a command is carried out."""
SWEEP_SECONDS = 10.0
"""Between two looks whether a sweep is wanted: one may have had to wait for somebody who reads the database."""
EXPECTED = (OSError, SQLAlchemyError, CoordinatorError)
"""What the world around the writer may do to it."""


@dataclass(frozen=True)
class Announcement:
    """The newest visible version, and how far the journal is consumed. waiting: why nothing is merged just now."""

    head: Version
    consumed: int
    waiting: str = ""


class Integrator:
    def __init__(
        self,
        spec: pb.FederationSpec,
        engine: Engine,
        history: History,
        announce: Callable[[Announcement], None],
        batch_max: int = BATCH_MAX,
    ):
        self._batch_max = batch_max
        self._spec, self._engine, self._history, self._announce = spec, engine, history, announce
        self._reversal = Reversal(spec, history)
        self._upkeep = Upkeep(spec, history.journal, history.catalog)
        self._waiting = ""
        self._sweep_at = monotonic()  # the first thing that the thread does: no start waits for it
        try:
            self._resume()
        except CoordinatorError as error:  # a blob of the head is damaged: what came before it is served meanwhile
            self._head, self._consumed = newest_sound(history), history.journal.consumed()
            self._waiting = str(error)
            log.error("version %d is served, nothing is merged: %s", self._head.version, error)
        self._wake, self._woken_at, self._newest = threading.Event(), 0.0, history.journal.newest_position()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="integrate")

    @property
    def announcement(self) -> Announcement:
        return Announcement(self._head, self._consumed, self._waiting)

    def start(self) -> None:
        self._thread.start()

    def wake(self, position: int) -> None:
        """There is something new in the journal, up to this position."""
        self._woken_at, self._newest = monotonic(), max(self._newest, position)
        self._wake.set()

    def stop(self) -> None:
        """Finish the entry at hand, then end. What is queued stays queued, on disk."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        sure = not self._waiting
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if not sure or monotonic() >= self._sweep_at:
                    self._sweep()
                if not sure:
                    self._resume()
                    self._now_waiting("")
                sure, worked = True, self._next()
            except Fenced:
                return
            except Exception as error:  # the disk's, the database's, or ours to mend: the one writer goes on
                why = _said(error)
                log.error("cannot store a version (%s): trying again every %g s", why, RETRY_SECONDS,
                          exc_info=not isinstance(error, EXPECTED))  # fmt: skip
                sure = False  # whether the commit came through: the disk will say
                self._now_waiting(why)
                self._stopping.wait(RETRY_SECONDS)
                continue
            if not worked:
                self._wake.wait(IDLE_SECONDS_MAX)

    def _now_waiting(self, why: str) -> None:
        self._waiting = why
        self._announce(self.announcement)

    def _resume(self) -> None:
        """Go on from what is on disk, which is the truth."""
        self._history.bases.forget()
        head = self._history.catalog.head()
        self._basis = self._history.bases.at(head)
        self._head, self._consumed = head, self._history.journal.consumed()
        self._norms = self._history.catalog.norms(NORMS_MAX) if self._spec.quarantine.deviations_max else []
        self._history.bases.remember(self._head, self._basis)
        self._upkeep.after(self._head, self._consumed)

    def _sweep(self) -> None:
        sweep_if_wanted(self._engine, self._history.blobs)
        self._sweep_at = monotonic() + SWEEP_SECONDS

    def _next(self) -> bool:
        self._let_arrivals_go_first()
        found = self._history.journal.after(self._consumed, self._batch_max)
        if not found:
            return False
        if found[0].command is None:
            self._merge(list(takewhile(lambda position: position.command is None, found)))
        else:
            self._carry_out(found[0], found[0].command)
        self._announce(self.announcement)
        return True

    def _let_arrivals_go_first(self) -> None:
        """While more come and the batch has room for them: merged together they cost less, and meanwhile no merge takes
        the processor from those who wait for a receipt."""
        latest = monotonic() + GATHER_SECONDS_MAX
        while monotonic() < min(self._woken_at + QUIET_SECONDS, latest) and not self._has_a_full_batch():
            sleep(QUIET_SECONDS)

    def _has_a_full_batch(self) -> bool:
        return self._newest - self._consumed >= self._batch_max

    def _merge(self, positions: Sequence[Position]) -> None:
        batch = self._batch()
        draft = batch.draft(positions)
        self._publish(draft)
        self._basis, self._norms, self._consumed = batch.state.basis, list(batch.norms), draft.position
        self._history.bases.remember(self._head, self._basis)
        self._upkeep.after(self._head, self._consumed)
        for ruling in (*draft.first, *draft.later):
            if ruling.outcome in IN_NO_VERSION:
                log.warning("position=%d %s: %s", ruling.position, pb.Outcome.Name(ruling.outcome), ruling.reason)

    def _batch(self) -> Batch:
        return Batch(self._history, self._head, State(self._basis), self._norms)

    def _carry_out(self, position: Position, command: pb.CommandRequest) -> None:
        """A command's version has another basis than the one in memory: it is read again from the disk."""
        try:
            self._publish_with_all(self._ordered(position, command))
        except (CoordinatorError, Refused, AlgebraError) as error:
            return self._skip(position, str(error))
        except (OSError, SQLAlchemyError, Fenced):  # the machine's, not the entry's: it is tried again
            raise
        except Exception as error:  # ours to mend
            log.exception("command failed id=%s", position.submission.update_id)
            return self._skip(position, f"internal error: {type(error).__name__}: {error}")
        self._sweep()  # before anybody is told
        self._resume()

    def _ordered(self, position: Position, command: pb.CommandRequest) -> Draft:
        if command.HasField("rollback"):
            return self._reversal.rollback(position, command.rollback, self._head)
        if command.HasField("compact"):
            return compaction(self._history, position, command.compact, self._head)
        if command.HasField("judge"):
            return judgement(self._history.journal, position, command.judge, self._batch().accepted)
        if command.HasField("collect"):
            return collection(self._history, position, command.collect, self._head)
        return self._reversal.forget(position, command.forget, self._head)

    def _publish_with_all(self, draft: Draft) -> None:
        """With all that is journaled meanwhile; where more comes faster than it is taken in, it has to wait."""
        with ExitStack() as stack:
            for overtaken in count(1):
                try:
                    return self._publish(draft)
                except Overtaken:
                    assert draft.letting_go, "only what lets versions go can be overtaken"
                    if overtaken == CATCH_UPS_MAX:
                        stack.enter_context(self._history.journal.closed())
                    draft = replace(draft, letting_go=caught_up(self._history, draft.letting_go))

    def _skip(self, position: Position, reason: str) -> None:
        skipped = Ruling(position.position, pb.OUTCOME_SKIPPED, reason=reason)
        self._publish(Draft(position.position, first=(skipped,)))
        self._consumed = position.position
        log.warning("skipped id=%s position=%d: %s", position.submission.update_id, position.position, reason)

    def _publish(self, draft: Draft) -> None:
        """Durable and visible when this returns; where it holds no record, without a new version."""
        if not draft.records:
            self._history.catalog.settle(draft, time())
            return
        self._head = self._history.catalog.publish(self._head, draft, time())
        for r in draft.records:
            log.info("published version=%d kind=%s update=%s position=%d task=%s error=%.1e basis=%d",
                     self._head.version, pb.VersionKind.Name(r.kind), r.update_id, r.position, r.task,
                     r.relative_error, r.basis_out)  # fmt: skip


def _said(error: Exception) -> str:
    if isinstance(error, EXPECTED):
        return str(error).partition("\n")[0]
    return f"internal error: {type(error).__name__}: {error}".partition("\n")[0]
