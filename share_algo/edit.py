"""Change what a subspace holds without merging: remove a task, rename one."""

from __future__ import annotations

from types import MappingProxyType

from share_algo.certificate import Certificate
from share_algo.compact import CompactReport, compact
from share_algo.errors import AlgebraError
from share_algo.names import check_task_name
from share_algo.subspace import Result, Subspace, require_float32
from share_algo.types import Basis, Block

UNUSED = 1e-6
"""Directions without which no remaining task changes by more than this, relative, are nobody's."""


def remove(subspace: Subspace, task: str) -> Result[CompactReport | None]:
    """The subspace without `task`, and without the directions that only it used.

    What only later-added columns held is cut off, which leaves all others bitwise alone. Where others lean on a
    mixture of the removed directions, the module's basis is rotated to the span of the remaining tasks
    (each within UNUSED); the report is of that compaction, None where none was needed.
    """
    require_float32(subspace)
    touched = subspace.entry(task).coefficients
    tasks = {name: entry for name, entry in subspace.tasks.items() if name != task}
    certificates: dict[str, Certificate] = {k: v for k, v in subspace.certificates.items() if k != task}
    used = {m: (0, 0) for m in touched}
    for entry in tasks.values():
        for module in touched.keys() & entry.coefficients.keys():
            used[module] = _larger(used[module], entry.coefficients[module].widths)
    present = {m for entry in tasks.values() for m in entry.coefficients}
    after = subspace.but(
        basis=_cut(subspace.basis, used, present),
        tasks=MappingProxyType(tasks),
        certificates=MappingProxyType(certificates),
    )
    left = {m: UNUSED for m in touched if m in after.basis}
    result = compact(after, tolerance=left) if left and tasks else None
    if result is None or result.report.before == result.report.after:
        return Result(after, None)
    return Result(result.subspace, result.report)


def rename(subspace: Subspace, old: str, new: str) -> Subspace:
    """The same subspace; the task `old` is called `new`, in its place. AlgebraError if `new` is taken or no name."""
    check_task_name(new)
    subspace.entry(old)
    if new in subspace.tasks and new != old:
        raise AlgebraError(f"there is a task {new!r} already")

    tasks, certificates = (
        MappingProxyType({new if name == old else name: value for name, value in table.items()})
        for table in (subspace.tasks, subspace.certificates)
    )
    return subspace.but(tasks=tasks, certificates=certificates)


def _larger(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return max(a[0], b[0]), max(a[1], b[1])


def _cut(basis: Basis, used: dict[str, tuple[int, int]], present: set[str]) -> Basis:
    """Without columns after `used`, and without modules that no task has. Untouched blocks stay the same objects."""
    blocks = []
    left = dict(used)
    for block in basis.blocks:
        kept: Block = {m: d for m, d in block.items() if m not in used}
        for module in block.keys() & used.keys():
            K, L = left[module]
            columns = block[module].first(K, L)
            left[module] = (K - columns.widths[0], L - columns.widths[1])
            if module in present and (any(columns.widths) or not any(block[module].widths)):
                kept = {**kept, module: columns}
        if kept:
            same = kept.keys() == block.keys() and all(kept[m].widths == d.widths for m, d in block.items())
            blocks.append(block if same else kept)
    return Basis(tuple(blocks))
