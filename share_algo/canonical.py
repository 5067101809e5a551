"""Canonical form: two factor pairs with the same product become the same pair, up to signs.

(B G, G^-1 A) is the same update for every invertible G, so components of raw factors mean little. The
balanced form B = Us sqrt(S), A = sqrt(S) Vs^T of the product is free of that gauge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from share_algo.types import Adapter, Factors


def balanced(factors: Factors) -> Factors:
    """The same dW with balanced factors in float64, singular values falling, exact zeros dropped.

    The rank of the result is the numerical rank of dW (at least 1). Cost: (N + D) R^2, never N * D.
    """
    B_RN, A_RD, S_R = balanced_rows(factors.B_NR, factors.A_RD)
    keep = numerical_rank(S_R, factors.shape)
    return Factors(B_RN[:keep].T, A_RD[:keep], factors.layout)


def balanced_rows(B_GNR: Tensor, A_GRD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Balanced factors of one pair, or of G pairs at once, nothing dropped: (B_GRN, A_GRD, singular values S_GR)."""
    left_NR, inner_B = torch.linalg.qr(B_GNR.double())
    right_DR, inner_A = torch.linalg.qr(A_GRD.double().mT)
    U, S_R, Vh = torch.linalg.svd(inner_B @ inner_A.mT, full_matrices=False)
    root_R = S_R.sqrt()
    return (U * root_R[..., None, :]).mT @ left_NR.mT, (root_R[..., None] * Vh) @ right_DR.mT, S_R


def numerical_rank(S_R: Tensor, shape: tuple[int, int]) -> int:
    """How many falling singular values are no rounding of float64; at least one."""
    cutoff = torch.finfo(torch.float64).eps * max(shape) * (S_R[0] if S_R.numel() else 0.0)
    return max(1, int((cutoff < S_R).sum()))


def truncated(whole: Factors, lost_sq_max: float) -> Factors:
    """The fewest leading ranks of a `balanced` pair that lose at most `lost_sq_max` of ||dW||_F^2. At least one."""
    energy_R = whole.A_RD.square().sum(dim=1).square()  # squared singular values, falling
    lost_after = energy_R.flip(0).cumsum(0).flip(0)
    keep = max(1, int((lost_after > lost_sq_max).sum()))
    return Factors(whole.B_NR[:, :keep], whole.A_RD[:keep], whole.layout)


def difference_norm(a: Factors, b: Factors) -> float:
    """|| a.B a.A - b.B b.A ||_F, exact to float64 rounding. Cost: (N + D) R^2, never N * D."""
    left = torch.cat([a.B_NR.double(), -b.B_NR.double()], dim=1)
    right = torch.cat([a.A_RD.double().T, b.A_RD.double().T], dim=1)
    return float(torch.linalg.norm(torch.linalg.qr(left).R @ torch.linalg.qr(right).R.T))


def drift_norm(a: Factors, b: Factors) -> float:
    """|| a.B a.A - b.B b.A ||_F for factors that differ little, column by column; b may lack the last columns."""
    missing = a.rank - b.rank
    B_RN, A_RD = a.B_NR.T.double(), a.A_RD.double()
    near = pad(b.B_NR.T, (0, 0, 0, missing)), pad(b.A_RD, (0, 0, 0, missing))
    return math.sqrt(float(drift_energy((B_RN, A_RD), (B_RN @ B_RN.T, A_RD @ A_RD.T), near)))


def drift_energy(whole: tuple[Tensor, Tensor], grams: tuple[Tensor, Tensor], near: tuple[Tensor, Tensor]) -> Tensor:
    """|| B^T A - near_B^T near_A ||_F^2 of one pair (B_RN, A_RD) in float64, or of many at once.

    grams: B B^T and A A^T. The difference is E_B^T A + B^T E_A - E_B^T E_A with E the differences of the factors; only
    products of R x R Gram matrices with E in them are summed, so nothing large cancels. Cost: 4 (N + D) R^2.
    """
    (B_RN, A_RD), (gram_B, gram_A) = whole, grams
    E_B, E_A = B_RN - near[0], A_RD - near[1]
    EE_B, EE_A, EB, EA = E_B @ E_B.mT, E_A @ E_A.mT, E_B @ B_RN.mT, E_A @ A_RD.mT
    squares = EE_B * gram_A + gram_B * EE_A + EE_B * EE_A
    mixed = EB * EA.mT - EE_B * EA - EB * EE_A
    return (squares + 2 * mixed).sum((-2, -1)).clamp(min=0.0)


def norm(factors: Factors) -> float:
    """|| B A ||_F. Cost: (N + D) R^2."""
    inner_B = torch.linalg.qr(factors.B_NR.double()).R
    inner_A = torch.linalg.qr(factors.A_RD.double().T).R
    return float(torch.linalg.norm(inner_B @ inner_A.T))


def whole_norm(adapter: Adapter) -> float:
    """|| dW ||_F over all modules."""
    return math.hypot(*(norm(factors) for factors in adapter.factors.values()))


def product_norm(left_KR: Tensor, right_LR: Tensor) -> float:
    """|| left right^T ||_F from the Gram matrices: no decomposition, relative accuracy 1e-8 (of the norm) or better."""
    return math.sqrt(max(0.0, float(((left_KR.T @ left_KR) * (right_LR.T @ right_LR)).sum())))
