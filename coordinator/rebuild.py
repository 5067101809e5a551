"""A subspace from nothing but events: what `forget` makes and `replay` compares with. Pure.

Updates are merged as their tasks' policies say, with the staleness that they had when they were merged first. Of a
buffer of which some contributions are left out, the others are averaged among themselves, and their differences stay
what they were: from the task as it was in their own base versions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coordinator.errors import CoordinatorError
from coordinator.transition import Arrived, Skipped, State, step
from protos.fedshare.v1 import federation_pb2 as pb

Event = Sequence[Arrived]
"""What one step takes in: an update, or all of a buffer."""


def apply(state: State, event: Event, spec: pb.FederationSpec) -> State:
    """The state after one more event. Raises CoordinatorError where that is not possible any more."""
    after, result = step(state, event, spec)
    if isinstance(result, Skipped):
        raise CoordinatorError(f"update {event[-1].update_id} cannot be merged again: {result.reason}")
    return after


def rebuild(events: Iterable[Event], spec: pb.FederationSpec) -> State:
    """All events in order, each update lifted with its own base. Cost: one merge each."""
    state = State()
    for event in events:
        state = apply(state, event, spec)
    return state
