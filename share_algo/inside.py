"""Many modules at once, and those of them that the basis holds already: all, once it is saturated.

There a merge is calls more than arithmetic. So modules of one shape and rank are stacked, G of them, and decomposed
together; only the products with a module's own columns are made one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from share_algo.canonical import balanced_rows, drift_energy, numerical_rank
from share_algo.errors import AlgebraError
from share_algo.types import Directions, Factors, spread

STACK_NUMBERS_MAX = 1 << 15
"""Of one side's factors: what is made of a stack should stay in a core's cache, in memory that is there already."""


@dataclass(frozen=True)
class Stack:
    """G modules' dW in balanced form, float64: B_GRN[g].T @ A_GRD[g], with singular values S_GR."""

    B_GRN: Tensor
    A_GRD: Tensor
    S_GR: Tensor

    @staticmethod
    def of(each: Mapping[str, Factors], device: torch.device) -> Stack:
        """By module; all of one shape, rank, type and device. AlgebraError names what holds NaN or Inf."""
        B_GNR, A_GRD = (torch.stack(side) for side in zip(*((f.B_NR, f.A_RD) for f in each.values()), strict=True))
        if not math.isfinite(B_GNR.sum() + A_GRD.sum()):  # of finite numbers, too, where these are huge
            for module, f in each.items():
                if not (f.B_NR.isfinite().all() and f.A_RD.isfinite().all()):
                    raise AlgebraError(f"{module}: the update holds NaN or infinite values")
        if torch.float64 in (B_GNR.dtype, A_GRD.dtype):
            _check_range(each)
        return Stack(*balanced_rows(B_GNR.to(device), A_GRD.to(device)))

    def factors(self, g: int, layout: str) -> Factors:
        """One of them, exact zeros dropped."""
        N, D = self.B_GRN.shape[2], self.A_GRD.shape[2]
        keep = numerical_rank(self.S_GR[g], (N, D))
        return Factors(self.B_GRN[g, :keep].T, self.A_GRD[g, :keep], layout)


def _check_range(each: Mapping[str, Factors]) -> None:
    """AlgebraError for finite numbers whose product is not; decompositions of those end in errors of their own."""
    for module, f in each.items():
        if not f.B_NR.norm() * f.A_RD.norm() <= torch.finfo(torch.float32).max:
            raise AlgebraError(f"{module}: the update is too large for float32")


@dataclass(frozen=True)
class Held:
    """Coordinates in a module's columns, float32, and the Frobenius norm of what they, as read, are wrong by."""

    P_KR: Tensor
    Q_LR: Tensor
    error: float


def stackable(factors: Mapping[str, Factors]) -> Iterator[list[str]]:
    """Names of modules that can be one Stack, each once. AlgebraError for one that has nothing to decompose."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for module, f in factors.items():
        if f.rank == 0 or 0 in f.shape:
            raise AlgebraError(f"{module}: an update of rank {f.rank} and shape {f.shape} is empty")
        kind = (f.shape, f.rank, f.B_NR.dtype, f.A_RD.dtype, f.B_NR.device, f.A_RD.device)
        alike.setdefault(kind, []).append(module)
    for modules in alike.values():
        first = factors[modules[0]]
        size = max(1, STACK_NUMBERS_MAX // (max(first.shape) * first.rank))
        yield from (modules[i : i + size] for i in range(0, len(modules), size))


def held(columns: Sequence[Directions], stack: Stack, tolerance: float) -> list[Held | None]:
    """Of each module that loses at most `tolerance` inside its columns, with its whole rank, its coordinates there.

    None: it needs directions, or a smaller rank may do. Cost: (N K + D L) R, and a few (N + D) R^2.
    """
    if not all(all(c.widths) for c in columns):
        return [None] * len(columns)
    B_GRN, A_GRD = stack.B_GRN.float(), stack.A_GRD.float()
    sides = []
    for c, B_RN, A_RD in zip(columns, B_GRN, A_GRD, strict=True):
        P_RK, Q_RL = B_RN @ c.out_NK, A_RD @ c.in_DL
        sides.append((P_RK.T, Q_RL.T))
        B_RN[:], A_RD[:] = spread(c.out_NK, P_RK.T), spread(c.in_DL, Q_RL.T)
    gram = stack.S_GR.diag_embed()
    errors_G = drift_energy((stack.B_GRN, stack.A_GRD), (gram, gram), (B_GRN, A_GRD)).sqrt()
    allowed_G = tolerance * stack.S_GR.norm(dim=1)
    # no singular value of what is kept is smaller than dW's by more than the error (Weyl): so the last must stay
    spare_G = (allowed_G.square() - errors_G.square()).clamp(min=0.0).sqrt()
    fits_G = (errors_G <= allowed_G) & (stack.S_GR[:, -1] - errors_G > spare_G)
    return [
        Held(P_KR, Q_LR, error) if fits else None
        for (P_KR, Q_LR), error, fits in zip(sides, errors_G.tolist(), fits_G.tolist(), strict=True)
    ]
