"""Keep a basis inside a budget of columns at a cost that does not grow with the number of tasks.

The columns are the leading eigenvectors of the tasks' summed Gram matrices (HOSVD: the start of the joint optimum in
tucker.py, without its refinement, which would look at every task). No task is touched: see groups.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from share_algo.groups import Group, Grouped, compacted, tables
from share_algo.subspace import Subspace
from share_algo.tucker import leading
from share_algo.turns import Turn, turned_basis


@dataclass(frozen=True)
class BudgetReport:
    """What was done to stay inside the budget: (K, L) by module, of those that were compacted."""

    before: Mapping[str, tuple[int, int]]
    after: Mapping[str, tuple[int, int]]
    seconds: float


def within(subspace: Subspace, sizes: Mapping[str, int]) -> tuple[Subspace, BudgetReport]:
    """The subspace with no more columns a side than `sizes` says, by module; no task above its certificate.

    Cost per module: N K k + D L l for the columns and about log T times K^3. A subspace that was made in another way
    is looked at whole the first time.
    """
    started = time.perf_counter()
    groups = _groups(subspace)
    before = {module: subspace.basis[module].widths for module in sizes}
    turns = {module: _columns(module, groups, before[module], size) for module, size in sizes.items()}
    tasks, certificates = tables(compacted(groups, turns))
    basis = turned_basis(subspace.basis, turns)
    after = subspace.but(basis=basis, tasks=tasks, certificates=certificates)
    now = {module: basis[module].widths for module in sizes}
    return after, BudgetReport(before, now, time.perf_counter() - started)


def _groups(subspace: Subspace) -> tuple[Group, ...]:
    if isinstance(subspace.tasks, Grouped):
        return subspace.tasks.groups
    return (Group(subspace.tasks, {task: subspace.certificate(task) for task in subspace.tasks}),)


def _columns(module: str, groups: tuple[Group, ...], widths: tuple[int, int], size: int) -> Turn:
    grams = [group.gram(module) for group in groups if module in group.grams]
    M_out, M_in = (
        leading(_total([gram[side] for gram in grams], width), min(size, width))[0] for side, width in enumerate(widths)
    )
    return M_out, M_in


def _total(grams: list[Tensor], width: int) -> Tensor:
    """Their sum; older ones know the first columns only."""
    total = torch.zeros(width, width).to(grams[0])
    for gram in grams:
        total[: len(gram), : len(gram)] += gram
    return (total + total.T) / 2
