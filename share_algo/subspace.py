"""A subspace: one basis for everybody, one entry for each task. `merge` is pure."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from share_algo.append import DEFAULT_TOLERANCE, Appended, ModuleReport, append
from share_algo.canonical import difference_norm, norm, product_norm
from share_algo.certificate import Certificate, largest
from share_algo.errors import AlgebraError
from share_algo.groups import Grouped, tables
from share_algo.names import check_task_name
from share_algo.types import Adapter, Basis, TaskEntry

Report = TypeVar("Report")
Value = TypeVar("Value")
FLOAT32 = "float32"


@dataclass(frozen=True)
class Subspace:
    """Immutable. `certificates` says for each task how far it is from what was merged."""

    basis: Basis = field(default_factory=Basis)
    tasks: Mapping[str, TaskEntry] = field(default_factory=lambda: MappingProxyType({}))
    certificates: Mapping[str, Certificate] = field(default_factory=lambda: MappingProxyType({}))
    base_model: str = ""
    form: str = FLOAT32

    @staticmethod
    def empty() -> Subspace:
        return Subspace()

    @staticmethod
    def load(folder: Path | str) -> Subspace:
        """What `save` wrote, bitwise. AlgebraError for anything missing, changed or hostile."""
        from share_algo.store import load_subspace

        return load_subspace(Path(folder))

    def save(self, folder: Path | str) -> None:
        """Write or replace the subspace in `folder`; visible all at once, after it is durable."""
        from share_algo.store import save_subspace

        save_subspace(self, Path(folder))

    def entry(self, task: str) -> TaskEntry:
        if task not in self.tasks:
            known = sorted(self.tasks)
            some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise AlgebraError(f"no task {str(task)[:100]!r}; there are: {some or 'none'}")
        return self.tasks[task]

    def adapter(self, task: str) -> Adapter:
        """One task as plain LoRA factors (scaling 1)."""
        return self.entry(task).adapter(self.basis)

    def certificate(self, task: str) -> Certificate:
        """The task's certificate; one without a history counts as exact from now on."""
        found = self.certificates.get(task)
        if found is None:
            each = self.entry(task).coefficients.values()
            found = Certificate(math.hypot(*(product_norm(c.P_KR.double(), c.Q_LR.double()) for c in each)), 0.0)
        return found

    def nbytes(self, *, coefficients_only: bool = False) -> int:
        """Bytes in the form it is stored in: tasks (coefficients, heads), and the basis unless told otherwise."""
        if self.form != FLOAT32:
            from share_algo.forms import stored_nbytes

            return stored_nbytes(self, coefficients_only=coefficients_only)
        own = sum(entry.nbytes() for entry in self.tasks.values())
        return own if coefficients_only else own + self.basis.nbytes()

    def with_task(self, task: str, entry: TaskEntry, certificate: Certificate) -> Subspace:
        """The same basis and other tasks. Cost: two copies of a table of names (20 us for 10,000 tasks)."""
        if isinstance(self.tasks, Grouped):
            *older, newest = self.tasks.groups
            tasks, certificates = tables((*older, newest.with_task(task, entry, certificate)))
            return self.but(tasks=tasks, certificates=certificates)
        return self.but(tasks=_with(self.tasks, task, entry), certificates=_with(self.certificates, task, certificate))

    def but(self, **changes: Any) -> Subspace:
        """This subspace with some fields replaced."""
        return Subspace(**{**self.__dict__, **changes})


def _with(table: Mapping[str, Value], name: str, value: Value) -> Mapping[str, Value]:
    """A copy with one more name. `|` copies tables at once; unpacking a proxy would look up each name."""
    known = table if isinstance(table, dict | MappingProxyType) else dict(table)
    return MappingProxyType(known | {name: value})


@dataclass(frozen=True)
class Result(Generic[Report]):
    """What every operation gives back: a new subspace, and the truth about how it came to be."""

    subspace: Subspace
    report: Report


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. Only what depends on the newcomer is computed at once; the rest when asked for."""

    task: str
    modules: Mapping[str, ModuleReport]
    certificate: Certificate
    seconds: float
    after: Subspace = field(repr=False)
    compaction: Any = None

    @property
    def relative_error(self) -> float:
        """|| dW - kept ||_F / || dW ||_F of the newcomer, exact (with a compaction: see Certificate)."""
        return self.certificate.relative_error

    @property
    def largest_relative_error(self) -> float:
        """Of all tasks, by their certificates: exact where they are, otherwise a bound. Cost: one look at each."""
        return largest(self.after.certificates.values())

    @property
    def new_directions(self) -> tuple[int, int]:
        """(out, in), summed over modules."""
        return sum(m.new_out for m in self.modules.values()), sum(m.new_in for m in self.modules.values())

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """(K, L) by module, afterwards."""
        return self.after.basis.widths()

    @property
    def nbytes(self) -> int:
        return self.after.nbytes()


Merged = Result[MergeReport]


def measured(subspace: Subspace, task: str, adapter: Adapter) -> Subspace:
    """The same subspace with `task`'s certificate measured against `adapter`: exact, whatever happened on the way.

    AlgebraError where the modules differ. Cost per module: (N K + D L) R + (N + D) R^2.
    """
    kept = subspace.adapter(task)
    if odd := sorted(kept.factors.keys() ^ adapter.factors.keys()):
        raise AlgebraError(f"{odd[0]}: in the task or in the adapter, but not in both")
    error = math.hypot(*(difference_norm(adapter.factors[m], f) for m, f in kept.factors.items()))
    size = math.hypot(*(norm(f) for f in adapter.factors.values()))
    return subspace.with_task(task, subspace.tasks[task], Certificate(size, error, error))


def merge(
    subspace: Subspace,
    task: str,
    adapter: Adapter,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    budget: int | None = None,
) -> Merged:
    """The subspace with `task` in it; `subspace` itself is unchanged. A task of that name is replaced.

    budget: no side of any module has more columns afterwards; where it would, those modules are compacted to it, at a
    cost that hardly grows with the number of tasks (see budget.py). The other tasks then lose a little, too.
    Raises AlgebraError for what `check_adapter` and `append` refuse.
    """
    started = time.perf_counter()
    check_task_name(task)
    check_adapter(subspace, adapter)
    if budget is not None and budget < 1:
        raise AlgebraError(f"a budget of {budget} columns")
    appended = append(subspace.basis, adapter, tolerance=tolerance)
    after = placed(subspace, task, appended, base_model_of(adapter))
    compaction = None
    if budget is not None:
        from share_algo.budget import within

        if sizes := {m: budget for m, r in appended.modules.items() if max(r.K, r.L) > budget}:
            after, compaction = within(after, sizes)
    seconds = time.perf_counter() - started
    return Result(after, MergeReport(task, appended.modules, after.certificates[task], seconds, after, compaction))


def placed(subspace: Subspace, task: str, appended: Appended, base_model: str = "") -> Subspace:
    """The subspace with what `append` found in it. Cost: nothing that grows with tensors of other tasks."""
    block, entry = appended.update.block, appended.update.entry
    basis = subspace.basis.grown(block) if block else subspace.basis
    after = subspace.but(basis=basis, base_model=subspace.base_model or base_model)
    return after.with_task(task, entry, appended.certificate)


def base_model_of(adapter: Adapter) -> str:
    return str(adapter.settings.get("base_model_name_or_path") or "")


def require_float32(subspace: Subspace) -> None:
    """AlgebraError for a quantised subspace: its columns are no longer orthonormal, so it is for reading only."""
    if subspace.form != FLOAT32:
        raise AlgebraError(f"the subspace is quantised ({subspace.form}): use share_algo.dequantise first")


def check_adapter(subspace: Subspace, adapter: Adapter) -> None:
    """AlgebraError for an adapter with nothing in it, a poisoned head, or another base model's."""
    require_float32(subspace)
    theirs = base_model_of(adapter)
    if theirs and subspace.base_model and theirs != subspace.base_model:
        raise AlgebraError(f"the adapter is for base model {theirs[:200]!r}, the subspace for {subspace.base_model!r}")
    if not adapter.factors:
        raise AlgebraError("the adapter has no factors")
    if not any(f.B_NR.any() and f.A_RD.any() for f in adapter.factors.values()):
        raise AlgebraError(f"the update is zero in every module ({next(iter(adapter.factors))}, ...): nothing learned")
    for name, tensor in adapter.head.items():
        if not tensor.isfinite().all():
            raise AlgebraError(f"head {name}: NaN or infinite values")
