"""Where an update goes: which new directions it needs beside the old ones, and its coordinates in both.

What is lost has three parts, orthogonal to one another, so their squares add up: what lies outside the kept columns
on the out side, what lies outside on the in side only, and what a smaller rank drops of the kept core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from share_algo.canonical import balanced, truncated
from share_algo.types import Directions, Factors

DIRECTIONS_SHARES = (1.0, 0.5)
"""Tried shares of the squared error allowed that missing directions may use; the rest is for a smaller rank."""
EXACT = 1e-30
"""So that losing nothing is allowed where nothing may be lost."""


@dataclass(frozen=True)
class Placed:
    """New directions, and coordinates in [old, new]; rank_error: Frobenius norm of what a smaller rank dropped."""

    new: Directions
    P_KR: Tensor
    Q_LR: Tensor
    rank_error: float

    def price(self, shape: tuple[int, int]) -> int:
        """Numbers to be stored for it."""
        (N, D), (new_out, new_in) = shape, self.new.widths
        return N * new_out + D * new_in + self.P_KR.numel() + self.Q_LR.numel()


def place(old: Directions, whole: Factors, lost_sq_max: float) -> Placed:
    """The cheapest found that loses at most `lost_sq_max` of ||dW||_F^2. `whole`: balanced, float64.

    Cost: (N K + D L) R; decompositions of (N + D) R^2 only where directions are added.
    """
    return min(_candidates(old, whole, lost_sq_max), key=lambda placed: placed.price(whole.shape))


def _candidates(old: Directions, whole: Factors, lost_sq_max: float) -> Iterator[Placed]:
    singular_R = whole.A_RD.square().sum(1)
    P_KR, rest_NR = _projected(old.out_NK, whole.B_NR)
    Q_LR, rest_DR = _projected(old.in_DL, whole.A_RD.T)
    # the residual of dW is rest_N A + (out P) rest_D^T, two orthogonal parts
    lost = (rest_NR.square().sum(0) * singular_R).sum() + ((P_KR.T @ P_KR) * (rest_DR.T @ rest_DR)).sum()
    if lost <= lost_sq_max:
        none = Directions(rest_NR[:, :0].float(), rest_DR[:, :0].float())
        yield _ranked(none, P_KR, Q_LR, lost_sq_max - float(lost))
        return
    P_KR, more_out, Y_out = _more(old.out_NK, P_KR, rest_NR, singular_R)
    Q_LR, more_in, Y_in = _more(old.in_DL, Q_LR, rest_DR, singular_R)
    P_KR, Q_LR = torch.cat([P_KR, Y_out]), torch.cat([Q_LR, Y_in])
    lost_by_corner = _lost(P_KR @ Q_LR.T, old.widths)
    rounding = EXACT * float(singular_R.square().sum())
    for share in DIRECTIONS_SHARES:
        new_out, new_in = _fewest(lost_by_corner, whole.shape, share * lost_sq_max + rounding)
        new = Directions(more_out[:, :new_out].float(), more_in[:, :new_in].float())
        K, L = old.widths[0] + new_out, old.widths[1] + new_in
        yield _ranked(new, P_KR[:K], Q_LR[:L], lost_sq_max - float(lost_by_corner[new_out, new_in]))


def _ranked(new: Directions, P_KR: Tensor, Q_LR: Tensor, lost_sq_max: float) -> Placed:
    """With the fewest ranks that lose at most `lost_sq_max`; coordinates as they are where none can go."""
    if P_KR.shape[1] == 1 or not len(P_KR) or not len(Q_LR):
        return Placed(new, P_KR, Q_LR, 0.0)
    core = balanced(Factors(P_KR, Q_LR.T))
    fewer = truncated(core, lost_sq_max)
    if fewer.rank == P_KR.shape[1]:
        return Placed(new, P_KR, Q_LR, 0.0)
    rank_error = float(core.A_RD[fewer.rank :].square().sum(1).norm())
    return Placed(new, fewer.B_NR, fewer.A_RD.T, rank_error)


def _projected(old_NK: Tensor, whole_NR: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates in the old columns, and what these very coordinates leave over.

    Products in float32: their rounding is in the residual, where the next projection finds it.
    """
    coordinates_KR = old_NK.T @ whole_NR.float()
    return coordinates_KR.double(), whole_NR - (old_NK @ coordinates_KR).double()


def _more(old_NK: Tensor, P_KR: Tensor, rest_NR: Tensor, singular_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Refined coordinates in the old columns; new orthonormal columns, most useful first; coordinates in those.

    Usefulness is energy of dW: the residual's columns are weighted by the other factor's. Projected once
    more, in proportion to what is left: a small residual would otherwise consist of the first projection's rounding.
    """
    again_KR, rest_NR = _projected(old_NK, rest_NR)
    left_NR, inner = torch.linalg.qr(rest_NR * singular_R.sqrt())
    new_NR = left_NR @ torch.linalg.svd(inner, full_matrices=False)[0]
    # a column of which hardly anything was left is mostly the projections' rounding
    new_NR = torch.linalg.qr(new_NR - (old_NK @ (old_NK.T @ new_NR.float())).double()).Q
    return P_KR + again_KR, new_NR, new_NR.T @ rest_NR


def _lost(core: Tensor, old: tuple[int, int]) -> Tensor:
    """Energy outside each corner: entry (i, j) is what is lost with i new out and j new in directions.

    core: coordinates of dW in all old and all candidate directions, (K + R, L + R).
    """
    K, L = old
    energy = core.square()
    energy = torch.cat([energy[:K].sum(0, keepdim=True), energy[K:]])
    energy = torch.cat([energy[:, :L].sum(1, keepdim=True), energy[:, L:]], dim=1)
    below = energy.sum(1).flip(0).cumsum(0).flip(0)  # energy of row i and all after it
    beside = energy.flip(1).cumsum(1).flip(1).cumsum(0)  # of rows up to i, column j and all after it
    none = torch.zeros(1, dtype=energy.dtype, device=energy.device)
    below = torch.cat([below[1:], none])
    beside = torch.cat([beside[:, 1:], none.expand(len(energy), 1)], dim=1)
    return below[:, None] + beside


def _fewest(lost_by_corner: Tensor, shape: tuple[int, int], lost_sq_max: float) -> tuple[int, int]:
    """The cheapest (new_out, new_in) that loses at most `lost_sq_max`; a direction costs the numbers it has."""
    rows, columns = lost_by_corner.shape
    price = torch.arange(rows)[:, None] * shape[0] + torch.arange(columns)[None] * shape[1]
    price = torch.where((lost_by_corner <= lost_sq_max).cpu(), price, torch.iinfo(torch.int64).max)
    best = int(price.argmin())
    return best // columns, best % columns
