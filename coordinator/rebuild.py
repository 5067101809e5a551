"""A subspace from nothing but events, in order: what `forget` makes and `replay` compares with. Pure.

An event is an update that arrived, or a compaction. `Rebuilt.after` is the one function that applies one to a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.errors import CoordinatorError
from coordinator.transition import Arrived, Skipped, State, step
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis, Certificate, Subspace, TaskEntry, compact

Event = Arrived | pb.Compact


@dataclass(frozen=True)
class Learned:
    """A task in a basis, what the rows of its head mean, and how true it is."""

    entry: TaskEntry
    labels: Sequence[str]
    certificate: Certificate


@dataclass(frozen=True)
class Rebuilt:
    basis: Basis = field(default_factory=Basis)
    tasks: Mapping[str, Learned] = field(default_factory=dict)

    def after(self, event: Event, spec: pb.FederationSpec) -> Rebuilt:
        """Raises CoordinatorError where an update cannot be merged any more."""
        return self._merged(event, spec) if isinstance(event, Arrived) else self.compacted(event)

    def compacted(self, command: pb.Compact) -> Rebuilt:
        """With fewer columns, all tasks losing least together; this one itself where none would go.

        A certificate with norm 0 was never kept (a home of an older release): the task counts as exact from now on.
        """
        known = {task: t.certificate for task, t in self.tasks.items() if t.certificate.norm}
        subspace = Subspace(self.basis, {task: t.entry for task, t in self.tasks.items()}, known)
        done = compact(subspace, size=command.size or None, tolerance=command.tolerance or None)
        if done.report.before == done.report.after:
            return self
        after = done.subspace
        tasks = {task: Learned(after.entry(task), t.labels, after.certificate(task)) for task, t in self.tasks.items()}
        return Rebuilt(after.basis, tasks)

    def _merged(self, arrived: Arrived, spec: pb.FederationSpec) -> Rebuilt:
        state, result = step(State(0, self.basis), arrived, spec.tolerance, spec.rank)
        if isinstance(result, Skipped):
            raise CoordinatorError(f"update {arrived.update_id} cannot be merged again: {result.reason}")
        learned = Learned(result.entry, arrived.labels, result.certificate)
        return Rebuilt(state.basis, {**self.tasks, arrived.task: learned})


EMPTY = Rebuilt()


def rebuild(events: Iterable[Event], spec: pb.FederationSpec, rebuilt: Rebuilt = EMPTY) -> Rebuilt:
    """`rebuilt` after all events in order, each update lifted with its own base. Cost: one merge or compaction each."""
    for event in events:
        rebuilt = rebuilt.after(event, spec)
    return rebuilt
