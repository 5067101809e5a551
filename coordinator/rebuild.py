"""A subspace from nothing but events: what `forget` makes and `replay` compares with. Pure.

Updates are merged as their tasks' policies say, with the staleness that they had when they were merged first. Of a
buffer of which some contributions are left out, the others are averaged among themselves, and their differences stay
what they were: from the task as it was in their own base versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coordinator.errors import CoordinatorError
from coordinator.transition import Arrived, Learned, Skipped, State, step
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Subspace, compact

Event = Sequence[Arrived] | pb.Compact
"""What one step takes in: an update, or all of a buffer; or a compaction."""


def apply(state: State, event: Event, spec: pb.FederationSpec) -> State:
    """The state after one more event. Raises CoordinatorError where that is not possible any more."""
    if isinstance(event, pb.Compact):
        return compacted(state, event)
    after, result = step(state, event, spec)
    if isinstance(result, Skipped):
        raise CoordinatorError(f"update {event[-1].update_id} cannot be merged again: {result.reason}")
    return after


def compacted(state: State, command: pb.Compact) -> State:
    """With fewer columns, all tasks losing least together; this one itself where none would go.

    A certificate with norm 0 was never kept (a home of an older release): the task counts as exact from now on.
    """
    known = {task: learned.certificate for task, learned in state.tasks.items() if learned.certificate.norm}
    subspace = Subspace(state.basis, {task: learned.entry for task, learned in state.tasks.items()}, known)
    done = compact(subspace, size=command.size or None, tolerance=command.tolerance or None)
    if done.report.before == done.report.after:
        return state
    after = done.subspace
    tasks = {task: Learned(after.entry(task), t.labels, after.certificate(task)) for task, t in state.tasks.items()}
    return State(after.basis, tasks)


def rebuild(events: Iterable[Event], spec: pb.FederationSpec, state: State) -> State:
    """`state` after all events in order, each update lifted with its own base. Cost: one merge or compaction each."""
    for event in events:
        state = apply(state, event, spec)
    return state
