"""Compact: the merge that makes room. Fewer directions for all tasks together, losing least.

policy "joint": the Tucker-2 optimum on the cores (see tucker.py); weights 1/||dW||^2, so that no task is favoured for
being old or loud. This is the joint problem of Compress-then-Serve (arXiv:2407.00066) in core space.
policy "share": the paper's rule (arXiv:2602.06043), for comparison: on each side by itself the SVD of all tasks'
centred factors, as many columns as explain a share of the variance; tasks are projected uncentred.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from share_algo.certificate import ROUNDING, ErrorsReport
from share_algo.errors import AlgebraError
from share_algo.subspace import Result, Subspace, require_float32
from share_algo.tucker import Cores, smallest, tucker
from share_algo.turns import Turn, turned_basis, turned_entry

EXPLAINED_VARIANCE = 0.6
"""The paper's choice. As a bound on dW's error it means little: about 63 % of each factor."""

EXACT = 1e-12
"""So that a task that is zero does not hang on float64's rounding."""


@dataclass(frozen=True)
class CompactReport(ErrorsReport):
    """What a compaction did; before, after: (K, L) by module."""

    before: Mapping[str, tuple[int, int]]
    after: Mapping[str, tuple[int, int]]


Width = int | tuple[int, int]
Size = Width | Mapping[str, Width]
Tolerance = float | Mapping[str, float]
Compacted = Result[CompactReport]


def compact(
    subspace: Subspace,
    *,
    size: Size | None = None,
    tolerance: Tolerance | None = None,
    policy: Literal["joint", "share"] = "joint",
    weights: Mapping[str, float] | None = None,
    centred: bool = True,
) -> Compacted:
    """A subspace of fewer directions; `subspace` itself is unchanged. Modules that would not shrink stay bitwise.

    size: most columns a side, or (K, L), or either by module (others stay). There are fewer where the tasks need fewer:
    which way a column points that holds rounding alone (ROUNDING, relative to each task) is arbitrary.
    tolerance: as few as lose at most this, relative, of each task in each module; may be by module (others stay).
    Below ROUNDING it counts as ROUNDING.
    weights: multiply 1/||dW||^2 of the tasks named ("joint" only). centred: as the paper ("share" only).
    With "share" and no size: EXPLAINED_VARIANCE. Raises AlgebraError for contradictory arguments.
    Cost per module: T R (K^2 + L^2) a round, N K k + D L l for the new columns.
    """
    started = time.perf_counter()
    require_float32(subspace)
    subspace = subspace.but(tasks=dict(subspace.tasks), certificates=dict(subspace.certificates))
    _check(size, tolerance, policy)
    scale = _scales(subspace, weights or {})
    rotations, lost = {}, {}
    for module, cores, tasks in _each_module(subspace, _chosen(subspace, size, tolerance), scale):
        norms = [subspace.certificate(task).norm for task in tasks]
        columns = _columns(module, cores, norms, size, tolerance, policy, centred)
        if columns is not None:
            rotations[module] = columns
            lost[module] = dict(zip(tasks, cores.lost_T(*columns).tolist(), strict=True))
    after, errors = _rotated(subspace, rotations, lost)
    report = CompactReport(errors, after.certificates, subspace.nbytes(), after.nbytes(),
                           time.perf_counter() - started, subspace.basis.widths(), after.basis.widths())  # fmt: skip
    return Result(after, report)


def _check(size: Size | None, tolerance: Tolerance | None, policy: str) -> None:
    if policy not in ("joint", "share"):
        raise AlgebraError(f"policy must be 'joint' or 'share', not {policy!r}")
    if policy == "joint" and (size is None) == (tolerance is None):
        raise AlgebraError("say either size or tolerance")
    if policy == "share" and tolerance is not None:
        raise AlgebraError("the policy 'share' knows a size or explained variance, no tolerance")
    tolerances = list(tolerance.values()) if isinstance(tolerance, Mapping) else [tolerance or 0.0]
    if not all(0 <= t < 1 for t in tolerances):
        raise AlgebraError(f"tolerance must be in [0, 1), not {tolerance}")


def _chosen(subspace: Subspace, size: Size | None, tolerance: Tolerance | None) -> list[str]:
    named = {module for x in (size, tolerance) if isinstance(x, Mapping) for module in x}
    if odd := sorted(named - set(subspace.basis)):
        raise AlgebraError(f"{odd[0]}: the basis has no directions for this module")
    by_module = isinstance(size, Mapping) or isinstance(tolerance, Mapping)
    return [module for module in subspace.basis if module in named or not by_module]


def _scales(subspace: Subspace, weights: Mapping[str, float]) -> dict[str, float]:
    """w_t: 1/||dW_t||^2 over all modules together, times the caller's weight."""
    if odd := sorted(weights.keys() - subspace.tasks.keys()):
        raise AlgebraError(f"a weight for {odd[0]!r}, which is no task")
    if not all(0 <= w < math.inf for w in weights.values()):
        raise AlgebraError("weights must be finite and not negative")
    return {task: weights.get(task, 1.0) * subspace.certificate(task).weight for task in subspace.tasks}


def _each_module(
    subspace: Subspace, modules: list[str], scale: Mapping[str, float]
) -> Iterator[tuple[str, Cores, list[str]]]:
    """(module, its cores, names of their tasks), one module in memory at a time."""
    for module in modules:
        tasks = [task for task in sorted(subspace.tasks) if module in subspace.tasks[task].coefficients]
        if tasks and all(subspace.basis[module].widths):
            each = [subspace.tasks[task].coefficients[module] for task in tasks]
            yield module, Cores.of(each, subspace.basis[module].widths, [scale[t] for t in tasks]), tasks


def _columns(
    module: str,
    cores: Cores,
    norms: list[float],
    size: Size | None,
    tolerance: Tolerance | None,
    policy: str,
    centred: bool,
) -> Turn | None:
    """The module's new columns inside the old ones, or None where nothing would shrink."""
    K, L = cores.P_TKR.shape[1], cores.Q_TLR.shape[1]
    wanted: Width | None = size[module] if isinstance(size, Mapping) else size
    if wanted is not None:
        k, width_in = (wanted, wanted) if isinstance(wanted, int) else wanted
        if min(k, width_in) < 1:
            raise AlgebraError(f"{module}: a size of {wanted} columns")
        k, width_in = min(k, K), min(width_in, L)
        if (k, width_in) == (K, L):
            return None
        if policy == "joint":
            return _without_rounding(cores, norms, tucker(cores, k, width_in))
        sides = _principal(cores.P_TKR, k, centred), _principal(cores.Q_TLR, width_in, centred)
        return _without_rounding(cores, norms, sides)
    if policy == "share":
        return _principal(cores.P_TKR, None, centred), _principal(cores.Q_TLR, None, centred)
    allowed = max(ROUNDING, tolerance[module] if isinstance(tolerance, Mapping) else tolerance or 0.0)
    norm_T = cores.norm_T()
    found = smallest(cores, allowed * norm_T + EXACT * norm_T.max())
    return None if (found[0].shape[1], found[1].shape[1]) == (K, L) else found


def _without_rounding(cores: Cores, norms: list[float], columns: Turn) -> Turn:
    """The first columns, without which a task would lose more than float32's rounding of it."""
    M_out, M_in = columns
    k, width_in = cores.needed(M_out, M_in, ROUNDING * cores.weight_T.new_tensor(norms))
    return M_out[:, :k], M_in[:, :width_in]


def _principal(X_TKR: Tensor, size: int | None, centred: bool) -> Tensor:
    """Left singular vectors of all columns together, `size` or as many as EXPLAINED_VARIANCE asks for.

    The padding of smaller ranks is left out of the mean.
    """
    wide = X_TKR.transpose(0, 1).flatten(1).double()
    wide = wide[:, wide.any(0)]
    if centred:
        wide = wide - wide.mean(1, keepdim=True)
    left, singular, _ = torch.linalg.svd(wide, full_matrices=False)
    if size is None:
        energy = singular.square().cumsum(0) / singular.square().sum().clamp(min=torch.finfo(wide.dtype).tiny)
        size = min(len(singular), int((energy < EXPLAINED_VARIANCE).sum()) + 1)
    return left[:, :size]


def _rotated(
    subspace: Subspace, rotations: Mapping[str, Turn], lost: Mapping[str, Mapping[str, float]]
) -> tuple[Subspace, dict[str, float]]:
    """Every task projected on the new columns, with its certificate; and what each lost, relative to before."""
    basis = turned_basis(subspace.basis, rotations)
    tasks, certificates, errors = {}, {}, {}
    for task, entry in subspace.tasks.items():
        tasks[task] = turned_entry(entry, rotations)
        before = subspace.certificate(task)
        error = math.hypot(*(lost[m].get(task, 0.0) for m in lost))
        turned = [m for m in entry.coefficients if m in rotations]
        nested = all(entry.coefficients[m].widths == subspace.basis[m].widths for m in turned)
        certificates[task] = before.projected(error, nested=nested) if turned else before
        errors[task] = error / before.norm if before.norm else 0.0
    after = subspace.but(basis=basis, tasks=MappingProxyType(tasks), certificates=MappingProxyType(certificates))
    return after, errors
