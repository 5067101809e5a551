"""Append: the merge that forgets nothing.

The newcomer gets the smallest rank, and is projected on the basis; of what is left over, the fewest directions are
kept that bring the relative error of dW under the tolerance. Old columns and old coefficients are not touched, so every
earlier task is bitwise what it was. Cost does not depend on how many tasks came before.

Departs from Share (arXiv:2602.06043, which recomputes one SVD over all tasks at every merge): nothing is
mean-centred, both sides are chosen together by the error of dW itself, and the error stated is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from share_algo.canonical import balanced, difference_norm, norm, truncated
from share_algo.errors import AlgebraError
from share_algo.types import Adapter, Basis, Coefficients, Directions, Factors, TaskEntry, Update

DEFAULT_TOLERANCE = 1e-5
"""Relative dW error that changes no logit in float32 by more than rounding does."""

RANK_SHARE = 0.5
"""Of the squared error that the tolerance allows, how much may go into a smaller rank; the rest into directions."""
ROUNDING = 1e-30
"""So that nothing lost is allowed where nothing may be lost."""


@dataclass(frozen=True)
class ModuleReport:
    """What one module's append did. `error` and `norm` are Frobenius norms of dW."""

    new_out: int
    new_in: int
    K: int
    L: int
    error: float
    norm: float

    @property
    def relative_error(self) -> float:
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class Appended:
    """An Update that expresses the adapter in [basis, update.block], and the truth about it."""

    update: Update
    modules: Mapping[str, ModuleReport]

    @property
    def relative_error(self) -> float:
        """|| dW - kept ||_F / || dW ||_F over all modules together."""
        norm_sq = sum(m.norm**2 for m in self.modules.values())
        return math.sqrt(sum(m.error**2 for m in self.modules.values()) / norm_sq) if norm_sq else 0.0


def append(basis: Basis, adapter: Adapter, *, tolerance: float = DEFAULT_TOLERANCE) -> Appended:
    """Express `adapter` in `basis` and the fewest new directions, each module within `tolerance`.

    tolerance: bound on ||dW - kept||_F / ||dW||_F per module, in [0, 1).
    Raises AlgebraError (the caller's fault) for NaN, Inf, or shapes that differ from the basis's.
    Cost per module: (N K + D L) R + (N + D) R^2.
    """
    if not 0 <= tolerance < 1:
        raise AlgebraError(f"tolerance must be in [0, 1), not {tolerance}")
    parts = {m: _append_module(m, basis, f, tolerance) for m, f in adapter.factors.items()}
    block = {m: new for m, (new, _, _) in parts.items() if new.widths != (0, 0)}
    entry = TaskEntry({m: c for m, (_, c, _) in parts.items()}, adapter.head)
    return Appended(Update(block, entry), {m: r for m, (_, _, r) in parts.items()})


def _append_module(
    module: str, basis: Basis, factors: Factors, tolerance: float
) -> tuple[Directions, Coefficients, ModuleReport]:
    if not (factors.B_NR.isfinite().all() and factors.A_RD.isfinite().all()):
        raise AlgebraError(f"{module}: the update holds NaN or infinite values")
    exact = balanced(factors)
    size = norm(exact)
    whole = truncated(exact, RANK_SHARE * (tolerance * size) ** 2)
    lost_sq_max = (tolerance * size) ** 2 - difference_norm(exact, whole) ** 2
    old = basis.columns(module, *factors.shape)
    root_R = whole.A_RD.norm(dim=1)  # balanced: column norms of both factors are sqrt(S)
    P_KR, more_out, Y_out = _split(old.out_NK, whole.B_NR, root_R)
    Q_LR, more_in, Y_in = _split(old.in_DL, whole.A_RD.T, root_R)
    core = torch.cat([P_KR, Y_out]) @ torch.cat([Q_LR, Y_in]).T
    new_out, new_in = _fewest(core, old.widths, factors.shape, lost_sq_max)
    new = Directions(more_out[:, :new_out].float(), more_in[:, :new_in].float())
    kept = Coefficients(torch.cat([P_KR, Y_out[:new_out]]).float(), torch.cat([Q_LR, Y_in[:new_in]]).float())
    columns = old.then(new)
    report = ModuleReport(new_out, new_in, *columns.widths, difference_norm(exact, kept.read(columns)), size)
    return new, kept, report


def _split(old_NK: Tensor, whole_NR: Tensor, weight_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates in the old columns; new orthonormal columns, most useful first; coordinates in those.

    Usefulness is energy of dW: the residual's columns are weighted by the other factor's.
    """
    old = old_NK.double()
    coordinates_KR = old.T @ whole_NR
    rest_NR = whole_NR - old @ coordinates_KR
    again_KR = old.T @ rest_NR  # once more: the first projection leaves rounding behind
    rest_NR = rest_NR - old @ again_KR
    left_NR, _, _ = torch.linalg.svd(rest_NR * weight_R, full_matrices=False)
    left_NR = left_NR - old @ (old.T @ left_NR)
    new_NR = torch.linalg.qr(left_NR).Q
    return coordinates_KR + again_KR, new_NR, new_NR.T @ rest_NR


def _fewest(core: Tensor, old: tuple[int, int], shape: tuple[int, int], lost_sq_max: float) -> tuple[int, int]:
    """The cheapest (new_out, new_in) whose discarded energy is at most `lost_sq_max`.

    core: coordinates of dW in all old and all candidate directions, (K + R, L + R). What is outside the
    kept corner is exactly what is lost. Price of a direction: the numbers that it adds to the basis.
    """
    (K, L), (N, D) = old, shape
    energy = core.square()
    energy = torch.cat([energy[:K].sum(0, keepdim=True), energy[K:]])
    energy = torch.cat([energy[:, :L].sum(1, keepdim=True), energy[:, L:]], dim=1)
    below = energy.sum(1).flip(0).cumsum(0).flip(0)  # energy of row i and all after it
    beside = energy.flip(1).cumsum(1).flip(1).cumsum(0)  # of rows up to i, column j and all after it
    pad = torch.zeros(1, dtype=energy.dtype, device=energy.device)
    below = torch.cat([below[1:], pad])
    beside = torch.cat([beside[:, 1:], pad.expand(len(energy), 1)], dim=1)
    lost = below[:, None] + beside
    price = torch.arange(len(energy))[:, None] * N + torch.arange(energy.shape[1])[None] * D
    allowed = lost <= lost_sq_max + ROUNDING * energy.sum()
    price = torch.where(allowed.cpu(), price, torch.iinfo(torch.int64).max)
    best = int(price.argmin())
    return best // energy.shape[1], best % energy.shape[1]
