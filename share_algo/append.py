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

from share_algo.canonical import balanced, drift_norm, truncated
from share_algo.errors import AlgebraError
from share_algo.types import Adapter, Basis, Coefficients, Directions, Factors, TaskEntry, Update

DEFAULT_TOLERANCE = 1e-5
"""Relative dW error that changes no logit in float32 by more than rounding does."""

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative error below which what is left over is float32's rounding, not something to learn."""

RANK_SHARE = 0.5
"""Of the squared error that the tolerance allows, how much may go into a smaller rank; the rest into directions."""
ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative error below which what is left over is float32's rounding, not something to learn."""

EXACT = 1e-30
"""So that losing nothing is allowed where nothing may be lost."""


@dataclass(frozen=True)
class ModuleReport:
    """What one module's append did. Frobenius norms of dW: the error, of it what a smaller rank lost, and all."""

    new_out: int
    new_in: int
    K: int
    L: int
    error: float
    norm: float
    rank_error: float = 0.0

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

    tolerance: bound on ||dW - kept||_F / ||dW||_F per module, in [0, 1); below ROUNDING it counts as ROUNDING.
    Raises AlgebraError (the caller's fault) for NaN, Inf, rank 0, or shapes that differ from the basis's.
    Cost per module: (N K + D L) R + (N + D) R^2; decompositions of the residual only where directions are added.
    """
    if not 0 <= tolerance < 1:
        raise AlgebraError(f"tolerance must be in [0, 1), not {tolerance}")
    parts = {m: _append_module(m, basis, f, max(tolerance, ROUNDING)) for m, f in adapter.factors.items()}
    # a module that is zero still enters the basis, without columns: its shape must be known to read it
    block = {m: new for m, (new, _, _) in parts.items() if any(new.widths) or m not in basis}
    entry = TaskEntry({m: c for m, (_, c, _) in parts.items()}, adapter.head, adapter.settings)
    return Appended(Update(block, entry), {m: r for m, (_, _, r) in parts.items()})


def check_factors(module: str, factors: Factors) -> None:
    """AlgebraError for what no algebra can save: no rank, NaN, Inf."""
    if factors.rank == 0 or 0 in factors.shape:
        raise AlgebraError(f"{module}: an update of rank {factors.rank} and shape {factors.shape} is empty")
    if not (factors.B_NR.isfinite().all() and factors.A_RD.isfinite().all()):
        raise AlgebraError(f"{module}: the update holds NaN or infinite values")


def _append_module(
    module: str, basis: Basis, factors: Factors, tolerance: float
) -> tuple[Directions, Coefficients, ModuleReport]:
    check_factors(module, factors)
    old = basis.columns(module, *factors.shape)
    device = old.out_NK.device if any(old.widths) else factors.B_NR.device
    old = Directions(old.out_NK.to(device), old.in_DL.to(device))
    exact = balanced(Factors(factors.B_NR.to(device), factors.A_RD.to(device), factors.layout))
    norm = float(exact.A_RD.square().sum(1).norm())  # balanced: row norms squared are the singular values
    whole = truncated(exact, RANK_SHARE * (tolerance * norm) ** 2)
    rank_error = float(exact.A_RD[whole.rank :].square().sum(1).norm())
    new, P_KR, Q_LR = _placed(old, whole, (tolerance * norm) ** 2 - rank_error**2)
    kept = Coefficients(P_KR.float(), Q_LR.float(), factors.layout)
    columns = old.then(new) if any(new.widths) else old
    error = drift_norm(exact, kept.read(columns))
    if not math.isfinite(error + norm):
        raise AlgebraError(f"{module}: the update is too large for float32")
    return new, kept, ModuleReport(*new.widths, *columns.widths, error, norm, rank_error)


def _placed(old: Directions, whole: Factors, lost_sq_max: float) -> tuple[Directions, Tensor, Tensor]:
    """The new directions that `whole` (balanced) needs, and its coordinates in old and new ones together."""
    singular_R = whole.A_RD.square().sum(1)
    out_64, in_64 = old.out_NK.double(), old.in_DL.double()
    P_KR, rest_NR = _projected(out_64, whole.B_NR)
    Q_LR, rest_DR = _projected(in_64, whole.A_RD.T)
    # the residual of dW is rest_N A + (out P) rest_D^T, two orthogonal parts
    lost = (rest_NR.square().sum(0) * singular_R).sum() + ((P_KR.T @ P_KR) * (rest_DR.T @ rest_DR)).sum()
    if lost <= lost_sq_max:
        return Directions(rest_NR[:, :0].float(), rest_DR[:, :0].float()), P_KR, Q_LR
    more_out, Y_out = _candidates(out_64, rest_NR, singular_R)
    more_in, Y_in = _candidates(in_64, rest_DR, singular_R)
    core = torch.cat([P_KR, Y_out]) @ torch.cat([Q_LR, Y_in]).T
    new_out, new_in = _fewest(core, old.widths, whole.shape, lost_sq_max)
    new = Directions(more_out[:, :new_out].float(), more_in[:, :new_in].float())
    return new, torch.cat([P_KR, Y_out[:new_out]]), torch.cat([Q_LR, Y_in[:new_in]])


def _projected(old_NK: Tensor, whole_NR: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in the old columns, and what is left over."""
    coordinates_KR = old_NK.T @ whole_NR
    rest_NR = whole_NR - old_NK @ coordinates_KR
    again_KR = old_NK.T @ rest_NR  # once more: the first projection leaves rounding behind
    return coordinates_KR + again_KR, rest_NR - old_NK @ again_KR


def _candidates(old_NK: Tensor, rest_NR: Tensor, singular_R: Tensor) -> tuple[Tensor, Tensor]:
    """New orthonormal columns, most useful first, and the residual's coordinates in them.

    Usefulness is energy of dW: the residual's columns are weighted by the other factor's.
    """
    left_NR, inner = torch.linalg.qr(rest_NR * singular_R.sqrt())
    left_NR = left_NR @ torch.linalg.svd(inner, full_matrices=False)[0]
    left_NR = left_NR - old_NK @ (old_NK.T @ left_NR)
    new_NR = torch.linalg.qr(left_NR).Q
    return new_NR, new_NR.T @ rest_NR


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
    allowed = lost <= lost_sq_max + EXACT * energy.sum()
    price = torch.where(allowed.cpu(), price, torch.iinfo(torch.int64).max)
    best = int(price.argmin())
    return best // energy.shape[1], best % energy.shape[1]
