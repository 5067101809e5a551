"""What should have become of a journal: a second coordinator, as naive as can be, with dense matrices and no disk.

It walks through the entries in their order. Of what the first one stored it takes only the journal's order, which
entries versions were made for (where its batches ended), and which updates it says were superseded (and sees whether
they were).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from coordinator.catalog import Version
from coordinator.journal import Decision, Position
from coordinator.quarantine import NORMS_MAX
from coordinator.transition import Record
from protos.fedshare.v1 import federation_pb2 as pb

from .federations import policy_for
from .formulas import Dense, deviations, norm, of_adapter, total, weight

if TYPE_CHECKING:
    from .runs import World

Verdict = tuple[int, int]
"""(outcome, version)"""
NEAR = 1e-3
"""Nobody says on which side of a bound a number is that is so near to it."""


@dataclass(frozen=True)
class Step:
    """Updates that became one value of a task together, with what they were stale then. No updates: a compaction."""

    task: str = ""
    parts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Held:
    """A task, if nothing were ever cut off. is_cut: a compaction has been at it. scale: the largest of its parts."""

    value: Dense
    is_cut: bool
    scale: float


@dataclass(frozen=True)
class Made:
    """A version: the steps that led to it, the updates that it is made of, and its tasks."""

    path: tuple[Step, ...] = ()
    alive: frozenset[str] = frozenset()
    tasks: Mapping[str, Held] = field(default_factory=dict)


class Expected:
    """past: by position, all verdicts in order. made_for: by position, the version made for it."""

    def __init__(self, world: World, past: Mapping[int, list[Decision]], made_for: Mapping[int, Version]):
        self._world, self._past, self._made_for = world, past, made_for
        self.versions, self.gone = [Made()], dict[int, str]()
        self.verdicts: dict[str, list[Verdict]] = {}
        self.buffers: dict[str, list[str]] = {}
        self._positions: dict[str, int] = {}
        self._held: dict[int, list[str]] = {}
        self._norms: dict[str, float] = {}
        self._pending: list[Step] = []
        self._overtaken: dict[str, str] = {}

    @property
    def head(self) -> int:
        return len(self.versions) - 1

    def walk(self, entries: Iterable[tuple[Position, Decision]]) -> None:
        for position, _ in entries:
            update_id = position.submission.update_id
            if position.command is None:
                self._update(position.position, update_id)
                if made := self._made_for.get(position.position):
                    self._merged(made)
            else:
                self._all_is_merged(position.position)
                self._command(position.position, update_id, self._world.commands.get(update_id, position.command))
        self._all_is_merged(len(self.verdicts) + 1)

    # ---- updates ----

    def _update(self, position: int, update_id: str) -> None:
        self._positions[update_id] = position
        first, policy = self._past[position][0], policy_for(self._world.spec, self._task(update_id))
        stale = self.head - self._base(update_id)
        if first.outcome == pb.OUTCOME_SUPERSEDED:
            self._overtaken[update_id] = first.reason
        elif policy.HasField("staleness_max") and stale > policy.staleness_max:
            self._rule(update_id, pb.OUTCOME_TOO_STALE)
        elif self._is_unlike(update_id, first.outcome == pb.OUTCOME_QUARANTINED):
            self._rule(update_id, pb.OUTCOME_QUARANTINED)
        else:
            self._take(update_id)

    def _is_unlike(self, update_id: str, said: bool) -> bool:
        rule, enough = self._world.spec.quarantine, max(1, self._world.spec.quarantine.updates_min)
        if not rule.deviations_max or len(self._norms) < enough:
            return False
        worker, newest = self._world.made_of(update_id).worker, list(self._norms.items())[-NORMS_MAX:]
        others = [norm for one, norm in newest if self._world.made_of(one).worker != worker]
        found = deviations(self._norm(update_id), others if len(others) >= enough else [norm for _, norm in newest])
        return said if abs(found - rule.deviations_max) < NEAR else found > rule.deviations_max

    def _take(self, update_id: str) -> None:
        task = self._task(update_id)
        policy, members = policy_for(self._world.spec, task), [update_id]
        if policy.kind == pb.POLICY_KIND_FEDBUFF:
            members = self.buffers.setdefault(task, [])
            members.sort(key=self._positions.__getitem__)  # one that was accepted late waits where it arrived
            members.append(update_id)
            if len(members) < policy.buffer_size:
                return self._rule(update_id, pb.OUTCOME_BUFFERED)
            del self.buffers[task]
            assert all(step.task != task for step in self._pending), "two buffers of a task in one version"
        self._pending.append(Step(task, tuple((one, self.head - self._base(one)) for one in members)))
        self._norms |= {one: self._norm(one) for one in members}

    def _merged(self, version: Version) -> None:
        """All that is pending is in this version, in this order, and says so."""
        steps, self._pending = tuple(self._pending), []
        parts = [part for step in steps for part in step.parts]
        assert [r.update_id for r in version.records] == [one for one, _ in parts], (
            f"version {version.version} holds other updates, or in another order, than came to it"
        )
        before = self.versions[-1]
        tasks, weights = dict(before.tasks), []
        for step in steps:
            weights += self._weights(tasks.get(step.task), step)
            tasks = self._after(tasks, step)
        for record, (one, stale), wanted in zip(version.records, parts, weights, strict=True):
            self._is_recorded(record, one, stale, wanted)
        for one, reason in self._overtaken.items():
            self._is_overtaken(one, reason, [r.update_id for r in version.records])
        self._overtaken = {}
        self._add(Made(before.path + steps, before.alive | {one for one, _ in parts}, tasks))
        self._held[self.head] = [one for one, _ in parts]
        for one, _ in parts:
            self._rule(one, pb.OUTCOME_MERGED, self.head)

    def _is_recorded(self, record: Record, update_id: str, stale: int, wanted: float) -> None:
        assert (record.staleness, record.base_version) == (stale, self._base(update_id)), (
            "a wrong staleness is recorded"
        )
        assert abs(record.weight - wanted) < 1e-9, f"a weight of {record.weight}, where it is {wanted} by the paper"
        sent = self._norm(update_id) if record.task else 0.0  # it is erased since
        assert abs(record.norm - sent) <= 1e-4 * sent, "another norm is recorded than was sent"

    def _is_overtaken(self, update_id: str, reason: str, merged: Sequence[str]) -> None:
        mine, last = self._world.made_of(update_id), self._past[self._positions[update_id]][-1]
        by = [one for one in merged if one in reason]
        if last.outcome == pb.OUTCOME_ERASED:  # and so is what it was told before
            assert not reason, "what an erased update was told is there"
            by = [one for one in merged if self._world.made_of(one).worker == mine.worker]
        assert by and self._positions[by[-1]] > self._positions[update_id], f"superseded {reason}, which is not there"
        other = self._world.made_of(by[-1])
        assert (mine.worker, mine.task) == (other.worker, other.task), "superseded by somebody else's"
        assert policy_for(self._world.spec, mine.task).kind == pb.POLICY_KIND_REPLACE, "superseded, and not replaced"
        self._rule(update_id, pb.OUTCOME_SUPERSEDED)

    def _all_is_merged(self, position: int) -> None:
        left = [one for step in self._pending for one, _ in step.parts] + list(self._overtaken)
        assert not left, f"{left} came before position {position}, and are in no version"

    # ---- tasks ----

    def _weights(self, now: Held | None, step: Step) -> list[float]:
        policy = policy_for(self._world.spec, step.task)
        whole = policy.kind == pb.POLICY_KIND_REPLACE or (policy.kind == pb.POLICY_KIND_FEDASYNC and now is None)
        return [1.0 if whole else weight(policy, stale) for _, stale in step.parts]

    def _after(self, tasks: Mapping[str, Held], step: Step) -> dict[str, Held]:
        if not step.parts:
            return {task: replace(held, is_cut=True) for task, held in tasks.items()}
        now, weights = tasks.get(step.task), self._weights(tasks.get(step.task), step)
        if policy_for(self._world.spec, step.task).kind == pb.POLICY_KIND_FEDBUFF:
            parts = [
                p for (one, _), w in zip(step.parts, weights, strict=True) for p in self._changed(one, w / len(weights))
            ]
            parts += [(1.0, now.value)] if now else []
        else:
            [(only, _)] = step.parts
            parts = [(weights[0], self._sent(only))]
            parts += [(1.0 - weights[0], now.value)] if now and weights[0] < 1.0 else []
        goes_on = now if now and len(parts) > 1 else None
        scale = max([norm(part) for _, part in parts] + [goes_on.scale if goes_on else 0.0])
        return {**tasks, step.task: Held(total(*parts), bool(goes_on and goes_on.is_cut), scale)}

    def _changed(self, update_id: str, weight: float) -> list[tuple[float, Dense]]:
        """What it taught beside what its worker began with."""
        began = self._world.made_of(update_id).began
        return [(weight, self._sent(update_id)), *([(-weight, began)] if began else [])]

    # ---- commands ----

    def _command(self, position: int, command_id: str, request: pb.CommandRequest) -> None:
        before, kind = self.head, request.WhichOneof("command")
        done = getattr(self, f"_{kind}")(position, getattr(request, kind))
        made = self.head > before
        said = self._past[position][-1].reason
        assert (position in self._made_for) == made, f"position {position}: a {kind} should make {int(made)}: {said}"
        self._rule(command_id, pb.OUTCOME_DONE if done else pb.OUTCOME_SKIPPED, self.head if made else 0)

    def _rollback(self, position: int, command: pb.Rollback) -> bool:
        if command.version > self.head or command.version in self.gone:
            return False
        now, then = self.versions[-1], self.versions[command.version]
        self._add(then)
        for one in now.alive - then.alive:
            self._rule(one, pb.OUTCOME_REVERTED, self.head)
        for one in then.alive - now.alive:
            self._rule(one, pb.OUTCOME_MERGED, self.head)
        return True

    def _forget(self, position: int, command: pb.Forget) -> bool:
        its = {one for one in self._positions if self._is_of(one, command) and self._now(one) != pb.OUTCOME_ERASED}
        if not its:
            return False
        before = self.versions[-1]
        taken = its if command.erase else its & (before.alive | {u for buffer in self.buffers.values() for u in buffer})
        steps = [Step(s.task, tuple(p for p in s.parts if p[0] not in its)) for s in before.path]
        path = tuple(new for new, old in zip(steps, before.path, strict=True) if new.parts or not old.parts)
        tasks: dict[str, Held] = {}
        for step in path:
            tasks = self._after(tasks, step)
        if command.erase:
            self._let_go_from(its)
            self._norms = {one: norm for one, norm in self._norms.items() if one not in its}
        self._add(Made(path, before.alive - its, tasks))
        self.buffers = {t: left for t, buffer in self.buffers.items() if (left := [u for u in buffer if u not in its])}
        for one in taken:
            self._rule(one, pb.OUTCOME_ERASED if command.erase else pb.OUTCOME_REVERTED, self.head)
        return True

    def _let_go_from(self, erased: set[str]) -> None:
        first = min((v for v, held in self._held.items() if erased & set(held)), default=self.head + 1)
        self.gone = {v: "erased" for v in range(first, self.head + 1)} | self.gone

    def _compact(self, position: int, command: pb.Compact) -> bool:
        """How many columns it leaves, the contents say; whether it had to, the basis does."""
        made = self._made_for.get(position)
        if made is None:
            few = not command.size or self.columns <= command.size or not self.versions[-1].tasks
            assert few, f"{self.columns} columns, and nothing to compact"
            return False
        before = self.versions[-1]
        self._add(Made((*before.path, Step()), before.alive, self._after(before.tasks, Step())))
        return True

    @property
    def columns(self) -> int:
        """Of the newest version so far, as its record says: the contents are compared with that."""
        made = [v for v in self._made_for.values() if v.version == self.head]
        return max(made[0].records[-1].basis_out, made[0].records[-1].basis_in) if made else 0

    def _judge(self, position: int, command: pb.Judge) -> bool:
        if self._now(command.update_id) != pb.OUTCOME_QUARANTINED:
            return False
        if not command.accept:
            self._rule(command.update_id, pb.OUTCOME_REJECTED)
            return True
        self._take(command.update_id)
        if self._pending:
            assert position in self._made_for, "an update was accepted, and is in no version"
            self._merged(self._made_for[position])
        return True

    def _collect(self, position: int, command: pb.Collect) -> bool:
        readable = [v for v in range(1, self.head + 1) if v not in self.gone]
        numbers = readable[: -command.keep]
        self.gone |= dict.fromkeys(numbers, "collected")
        return bool(numbers)

    # ---- small things ----

    def _add(self, made: Made) -> None:
        self.versions.append(made)

    def _rule(self, one: str, outcome: int, version: int = 0) -> None:
        self.verdicts.setdefault(one, []).append((outcome, version))

    def _now(self, update_id: str) -> int:
        return self.verdicts[update_id][-1][0] if update_id in self.verdicts else pb.OUTCOME_UNSPECIFIED

    def _is_of(self, update_id: str, forget: pb.Forget) -> bool:
        made = self._world.made_of(update_id)
        return made.task == forget.task if forget.task else made.worker == forget.worker

    def _task(self, update_id: str) -> str:
        return self._world.made_of(update_id).task

    def _base(self, update_id: str) -> int:
        return self._world.made_of(update_id).base_version

    def _norm(self, update_id: str) -> float:
        return norm(self._sent(update_id))

    def _sent(self, update_id: str) -> Dense:
        return of_adapter(self._world.made_of(update_id).adapter)
