"""A subspace from nothing but updates: what `forget` makes and `replay` compares with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.errors import CoordinatorError
from coordinator.transition import Arrived, Skipped, State, step
from share_algo import Basis, Certificate, TaskEntry


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

    def merged(self, arrived: Arrived, tolerance: float, rank: int) -> Rebuilt:
        """With one more update. Raises CoordinatorError where it cannot be merged any more."""
        state, result = step(State(0, self.basis), arrived, tolerance, rank)
        if isinstance(result, Skipped):
            raise CoordinatorError(f"update {arrived.update_id} cannot be merged again: {result.reason}")
        learned = Learned(result.entry, arrived.labels, result.certificate)
        return Rebuilt(state.basis, {**self.tasks, arrived.task: learned})


def rebuild(updates: Iterable[Arrived], tolerance: float, rank: int) -> Rebuilt:
    """All updates merged in order, each lifted with its own base. Cost: one merge each."""
    rebuilt = Rebuilt()
    for arrived in updates:
        rebuilt = rebuilt.merged(arrived, tolerance, rank)
    return rebuilt
