"""Append: the merge that forgets nothing.

The newcomer is projected on the basis; of what is left over, the fewest directions are kept that bring the relative
error of dW under the tolerance, and it gets the smallest rank that this allows. Old columns and old coefficients are
not touched, so every earlier task is bitwise what it was. Cost does not depend on how many tasks came before.

Departs from Share (arXiv:2602.06043, which recomputes one SVD over all tasks at every merge): nothing is
mean-centred, both sides are chosen together by the error of dW itself, and the error stated is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from share_algo.canonical import balanced, difference_norm, drift_norm
from share_algo.certificate import Certificate
from share_algo.errors import AlgebraError
from share_algo.place import place
from share_algo.types import Adapter, Basis, Coefficients, Directions, Factors, TaskEntry, Update

DEFAULT_TOLERANCE = 1e-5
"""Relative dW error that changes no logit in float32 by more than rounding does."""

ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Relative error below which what is left over is float32's rounding, not something to learn."""


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
    def certificate(self) -> Certificate:
        """Over all modules together, exact."""
        modules = self.modules.values()
        return Certificate(
            *(math.hypot(*x) for x in zip(*((m.norm, m.error, m.rank_error) for m in modules), strict=True))
        )

    @property
    def relative_error(self) -> float:
        """|| dW - kept ||_F / || dW ||_F over all modules together."""
        return self.certificate.relative_error


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
    whole = balanced(Factors(factors.B_NR.to(device), factors.A_RD.to(device), factors.layout))
    norm = float(whole.A_RD.square().sum(1).norm())  # balanced: row norms squared are the singular values
    found = place(old, whole, (tolerance * norm) ** 2)
    kept = Coefficients(found.P_KR.float(), found.Q_LR.float(), factors.layout)
    columns = old.then(found.new) if any(found.new.widths) else old
    error = (difference_norm if found.rank_error else drift_norm)(whole, kept.read(columns))
    if not math.isfinite(error + norm):
        raise AlgebraError(f"{module}: the update is too large for float32")
    return found.new, kept, ModuleReport(*found.new.widths, *columns.widths, error, norm, found.rank_error)
