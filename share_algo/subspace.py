"""A subspace: one basis for everybody, one entry for each task. `merge` is pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from share_algo.append import DEFAULT_TOLERANCE, Appended, append
from share_algo.errors import AlgebraError
from share_algo.types import Adapter, Basis, TaskEntry


@dataclass(frozen=True)
class Subspace:
    basis: Basis = field(default_factory=Basis)
    tasks: Mapping[str, TaskEntry] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def empty() -> Subspace:
        return Subspace()

    def adapter(self, task: str) -> Adapter:
        """One task as plain LoRA factors (scaling 1)."""
        if task not in self.tasks:
            raise AlgebraError(f"no task {task!r}; there are: {', '.join(sorted(self.tasks)) or 'none'}")
        return self.tasks[task].adapter(self.basis)

    def nbytes(self, *, coefficients_only: bool = False) -> int:
        """Bytes held: tasks (coefficients and heads), and the basis unless told otherwise."""
        own = sum(entry.nbytes() for entry in self.tasks.values())
        return own if coefficients_only else own + self.basis.nbytes()


@dataclass(frozen=True)
class Merged:
    subspace: Subspace
    report: Appended


def merge(subspace: Subspace, task: str, adapter: Adapter, *, tolerance: float = DEFAULT_TOLERANCE) -> Merged:
    """The subspace with `task` in it; `subspace` itself is unchanged. A task of that name is replaced."""
    report = append(subspace.basis, adapter, tolerance=tolerance)
    block, entry = report.update.block, report.update.entry
    basis = subspace.basis.grown(block) if block else subspace.basis
    return Merged(Subspace(basis, MappingProxyType({**subspace.tasks, task: entry})), report)
