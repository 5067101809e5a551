"""What the one writer makes of updates that wait: one version at most, and a verdict on each. Writes blobs, no rows.

Each update by itself: what cannot be merged, is too stale, or is unlike the others disturbs nobody. Of several that one
worker sent for a task that is simply replaced, the newest is merged and the others are superseded; those of other
workers are merged all the same, so that the task can fall back to them when a worker is forgotten.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from sqlalchemy.exc import SQLAlchemyError

from coordinator.catalog import Version
from coordinator.draft import Draft
from coordinator.errors import CoordinatorError, Fenced, Refused
from coordinator.history import History
from coordinator.journal import Position
from coordinator.quarantine import NORMS_MAX, Norm, beside, unlike
from coordinator.staleness import too_stale
from coordinator.transition import Arrived, Merged, Record, Skipped, State, step
from coordinator.verdicts import Ruling
from coordinator.whole import encoded, kept, put
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import gathers, policy_of, replaces
from share_algo import AlgebraError
from share_algo.codec import encode_block

log = logging.getLogger(__name__)

BATCH_MAX = 32
BATCH_SECONDS_MAX = 1.0
"""A batch takes in no more after so long: nobody waits for a version because many others came, too."""


class Batch:
    """For one version after `head`. state: its basis. norms: of what was merged last.

    After `draft` both are those of the version that it makes.
    """

    def __init__(self, history: History, head: Version, state: State, norms: Iterable[Norm]):
        self._history, self._spec, self._head = history, history.spec, head
        self._before, self._vain = (state, tuple(norms)), set[int]()
        self._begin()

    def _begin(self) -> None:
        self.state, norms = self._before
        self.norms = deque(norms, NORMS_MAX)
        self._rulings: dict[int, Ruling] = {}
        self._records: list[Record] = []
        self._blocks: list[bytes] = []
        self._entries: dict[str, bytes] = {}
        self._buffers: dict[str, list[Position]] = {}

    def draft(self, positions: Sequence[Position]) -> Draft:
        """All that these entries change, or the first of them: `position` says how far it goes.

        Where one that has overtaken others cannot be merged, it is all done again with those in their own turns: what
        came to the same task after them goes on top of them.
        """
        while True:
            taken, overtaken = self._looked_at(positions)
            vain = {newer.position for _, newer in overtaken if not self._is_merged(newer)}
            if not vain:
                break
            positions, self._vain = taken, self._vain | vain
            self._begin()
        for older, newer in overtaken:
            self._rule(older, pb.OUTCOME_SUPERSEDED, f"by update {newer.submission.update_id} of the same worker")
        return self._drafted(taken[-1].position, {p.position for p in taken})

    def _looked_at(self, positions: Sequence[Position]) -> tuple[list[Position], list[tuple[Position, Position]]]:
        """(what was taken in, what was overtaken and by whom), with a ruling on each that was not overtaken."""
        began, taken, overtaken = monotonic(), list[Position](), list[tuple[Position, Position]]()
        for position in positions:
            if taken and (monotonic() - began > BATCH_SECONDS_MAX or self._is_full_again(position)):
                break
            taken.append(position)
            if newer := self._newer(position, positions):
                overtaken.append((position, newer))
            else:
                self._consider(position)
        return taken, overtaken

    def accepted(self, position: Position) -> Draft:
        """The same for an update that somebody has judged: it is merged however unlike the others or stale it is."""
        self._tried(position, lambda: self._take(position, self._arrived(position)))
        return self._drafted(position.position, set())

    def _drafted(self, position: int, new: set[int]) -> Draft:
        """new: entries that have no verdict yet."""
        return Draft(
            position=position,
            records=tuple(self._records),
            blocks=tuple(put(self._history, block) for block in self._blocks),
            entries={task: kept(self._history, self.state.tasks[task], blob) for task, blob in self._entries.items()},
            first=tuple(r for p, r in sorted(self._rulings.items()) if p in new),
            later=tuple(r for p, r in sorted(self._rulings.items()) if p not in new),
        )

    def _consider(self, position: Position) -> None:
        staleness = self._head.version - position.submission.base_version
        if reason := too_stale(self._policy(position), staleness):
            self._rule(position, pb.OUTCOME_TOO_STALE, reason)
            return
        self._tried(position, lambda: self._look(position))

    def _look(self, position: Position) -> None:
        arrived = self._arrived(position)
        rule = self._spec.quarantine
        if reason := unlike(arrived.norm, beside(arrived.worker, self.norms, rule), rule):
            self._rule(position, pb.OUTCOME_QUARANTINED, reason)
        else:
            self._take(position, arrived)

    def _take(self, position: Position, arrived: Arrived) -> None:
        if gathers(self._policy(position)):
            self._gather(position, arrived)
            return
        result = self._step([arrived])
        if isinstance(result, Skipped):
            self._skip(position, result.reason)
        else:
            self._merge([position], result)

    def _gather(self, position: Position, arrived: Arrived) -> None:
        """Into its task's buffer; with the last that it waits for, all of it into the version."""
        buffer, size = self._buffer(arrived.task), self._policy(position).buffer_size
        before = self.state
        fits = self._step([*(a for _, a in self._readable(buffer[:1])), arrived])
        self.state = before
        if isinstance(fits, Skipped):
            self._skip(position, fits.reason)
            return
        waiting = self._readable(buffer) if len(buffer) + 1 >= size else []
        if len(waiting) + 1 < size:
            buffer.append(position)
            self._rule(position, pb.OUTCOME_BUFFERED, f"with {len(buffer)} of {size} contributions to its task")
            return
        result = self._step([*(a for _, a in waiting), arrived])
        members = [*(p for p, _ in waiting), position]
        if isinstance(result, Merged):
            self._merge(members, result)
        else:
            for member in members:
                self._skip(member, result.reason)
        buffer.clear()

    def _step(self, arrived: Sequence[Arrived]) -> Merged | Skipped:
        """With what the task is by now, as far as its policy asks for that."""
        task, state = arrived[-1].task, self.state
        builds_on_it = task not in state.tasks and not replaces(policy_of(self._spec.policies, task))
        if builds_on_it and (now := self._history.learned(self._head, task)):
            state = State(state.basis, {**state.tasks, task: now})
        self.state, result = step(state, arrived, self._spec)
        return result

    def _merge(self, members: Sequence[Position], merged: Merged) -> None:
        """Encoded here, where what cannot be is one entry's matter and not the version's."""
        entry = encoded(merged.learned)
        self._blocks += [encode_block(merged.block)] if merged.block else []
        self._entries[merged.records[-1].task] = entry
        self._records += merged.records
        self.norms.extend(Norm(record.worker, record.norm) for record in merged.records)
        for member in members:
            self._rule(member, pb.OUTCOME_MERGED)

    def _is_full_again(self, position: Position) -> bool:
        """Whether it would be the last of a second buffer of its task: one version takes in one."""
        policy, task = self._policy(position), position.submission.task
        full = gathers(policy) and len(self._buffer(task)) + 1 >= policy.buffer_size
        return full and any(record.task == task for record in self._records)

    def _newer(self, position: Position, positions: Sequence[Position]) -> Position | None:
        """The newest by which it is overtaken."""
        if not replaces(self._policy(position)):
            return None
        mine = [p for p in positions if _whose(p) == _whose(position) and p.position not in self._vain]
        return mine[-1] if mine and mine[-1].position > position.position else None

    def _is_merged(self, position: Position) -> bool:
        ruling = self._rulings.get(position.position)
        return ruling is not None and ruling.outcome == pb.OUTCOME_MERGED

    def _buffer(self, task: str) -> list[Position]:
        """What waits for more, oldest first: on the disk, and changed since by this batch."""
        if task not in self._buffers:
            self._buffers[task] = self._history.journal.waiting(task)
        return self._buffers[task]

    def _readable(self, buffer: list[Position]) -> list[tuple[Position, Arrived]]:
        """Those that can be read; one that cannot be any more leaves the buffer with the reason."""
        found = []
        for position in list(buffer):
            try:
                found.append((position, self._arrived(position)))
            except (CoordinatorError, Refused, AlgebraError) as error:
                buffer.remove(position)
                self._skip(position, str(error))
        return found

    def _arrived(self, position: Position) -> Arrived:
        return self._history.arrived(position, self._head.version - position.submission.base_version)

    def _tried(self, position: Position, work: Callable[[], None]) -> None:
        """Whatever one entry holds, it must not stop the rest, and nothing of it stays."""
        before = self.state
        try:
            return work()
        except (CoordinatorError, Refused, AlgebraError) as error:
            reason = str(error)
        except (OSError, SQLAlchemyError, Fenced):  # the machine's, not the entry's: it is tried again
            raise
        except Exception as error:  # ours to mend
            log.exception("merging failed update=%s", position.submission.update_id)
            reason = f"internal error: {type(error).__name__}: {error}"
        self.state = before
        self._skip(position, reason)

    def _skip(self, position: Position, reason: str) -> None:
        self._rule(position, pb.OUTCOME_SKIPPED, reason)

    def _rule(self, position: Position, outcome: pb.Outcome, reason: str = "") -> None:
        self._rulings[position.position] = Ruling(position.position, outcome, reason=reason)

    def _policy(self, position: Position) -> pb.Policy:
        return policy_of(self._spec.policies, position.submission.task)


def _whose(position: Position) -> tuple[str, str]:
    return position.submission.task, position.submission.worker
