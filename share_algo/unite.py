"""Unite: two subspaces into one, as if all their tasks had been merged into the first.

The second basis is expressed in the first and the fewest directions beside it; its tasks follow by a small linear
map, so no task is read in full. (Two replicas of Share would merge by the SVD of [U1 S1, U2 S2]; this keeps the
first subspace bitwise instead.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from share_algo.append import DEFAULT_TOLERANCE, ROUNDING
from share_algo.canonical import product_norm
from share_algo.certificate import ErrorsReport
from share_algo.errors import AlgebraError
from share_algo.subspace import Result, Subspace, require_float32
from share_algo.types import Coefficients, Directions, TaskEntry


@dataclass(frozen=True)
class _Side:
    """Of one module's side: new columns; map from the second's coordinates; coordinates of what is dropped."""

    new: Tensor
    map: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class UniteReport(ErrorsReport):
    """What uniting did to the second's tasks. new: directions by module; widths: (K, L) by module, afterwards."""

    new: Mapping[str, tuple[int, int]]
    widths: Mapping[str, tuple[int, int]]


def unite(first: Subspace, second: Subspace, *, tolerance: float = DEFAULT_TOLERANCE) -> Result[UniteReport]:
    """All tasks of both. The first's are bitwise what they were; the second's move within `tolerance`, relative.

    AlgebraError for a task name in both (rename one), another base model, or shapes that differ.
    Cost per module: (N + D) K1 K2 + (N + D) K2^2, and K K2 R a task.
    """
    started = time.perf_counter()
    _check(first, second, tolerance)
    block, maps = {}, {}
    for module in second.basis:
        maps[module] = _beside(first, second, module, max(tolerance, ROUNDING))
        block[module] = Directions(maps[module][0].new, maps[module][1].new)
    new = {m: d.widths for m, d in block.items()}
    block = {m: d for m, d in block.items() if any(d.widths) or m not in first.basis}
    tasks, certificates, errors = dict(first.tasks), dict(first.certificates), {}
    for task, entry in second.tasks.items():
        tasks[task], lost = _moved(entry, maps)
        before = second.certificate(task)
        certificates[task] = before.projected(lost, nested=False)
        errors[task] = lost / before.norm if before.norm else 0.0
    after = first.but(
        basis=first.basis.grown(block) if block else first.basis,
        tasks=MappingProxyType(tasks),
        certificates=MappingProxyType(certificates),
        base_model=first.base_model or second.base_model,
    )
    report = UniteReport(errors, after.certificates, first.nbytes() + second.nbytes(), after.nbytes(),
                         time.perf_counter() - started, new, after.basis.widths())  # fmt: skip
    return Result(after, report)


def _check(first: Subspace, second: Subspace, tolerance: float) -> None:
    require_float32(first)
    require_float32(second)
    if not 0 <= tolerance < 1:
        raise AlgebraError(f"tolerance must be in [0, 1), not {tolerance}")
    if both := sorted(first.tasks.keys() & second.tasks.keys()):
        raise AlgebraError(f"task {both[0]!r} is in both subspaces: rename one")
    if first.base_model and second.base_model and first.base_model != second.base_model:
        raise AlgebraError(f"one subspace is for {first.base_model!r}, the other for {second.base_model!r}")


def _beside(first: Subspace, second: Subspace, module: str, tolerance: float) -> tuple[_Side, _Side]:
    theirs = second.basis[module]
    ours = first.basis.columns(module, theirs.out_NK.shape[0], theirs.in_DL.shape[0])
    # dropping a direction at angle s costs at most s ||dW|| a side
    out_side = _side(ours.out_NK, theirs.out_NK, tolerance / 2)
    return out_side, _side(ours.in_DL, theirs.in_DL, tolerance / 2)


def _side(ours_NK: Tensor, theirs_NK: Tensor, sine_max: float) -> _Side:
    """Columns for what `ours` lacks of `theirs`, as far as its sine is above `sine_max`."""
    device = ours_NK.device if ours_NK.shape[1] else theirs_NK.device
    theirs, ours = theirs_NK.to(device).double(), ours_NK.to(device).double()
    rest = theirs - ours @ (ours.T @ theirs)
    left, inner = torch.linalg.qr(rest)
    turned, sines, right = torch.linalg.svd(inner, full_matrices=False)
    keep = int((sines > sine_max).sum())
    left = (left @ turned)[:, :keep]
    left = left - ours @ (ours.T @ left)
    new = torch.linalg.qr(left).Q.float()
    return _Side(new, torch.cat([ours.T @ theirs, new.double().T @ theirs]), (sines[:, None] * right)[keep:])


def _moved(entry: TaskEntry, maps: Mapping[str, tuple[_Side, _Side]]) -> tuple[TaskEntry, float]:
    """The task in united coordinates, and what it lost: two orthogonal parts a module."""
    coefficients, lost = {}, []
    for module, c in entry.coefficients.items():
        (K, L), (out_side, in_side) = c.widths, maps[module]
        old_P, old_Q = c.P_KR.to(out_side.map), c.Q_LR.to(in_side.map)
        P_KR, Q_LR = out_side.map[:, :K] @ old_P, in_side.map[:, :L] @ old_Q
        lost.append(product_norm(out_side.dropped[:, :K] @ old_P, old_Q))
        lost.append(product_norm(P_KR, in_side.dropped[:, :L] @ old_Q))
        coefficients[module] = Coefficients(P_KR.float(), Q_LR.float(), c.layout)
    return entry.with_coefficients(coefficients), math.hypot(*lost)
