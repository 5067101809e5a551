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
    B_NR, A_DR = factors.B_NR.double(), factors.A_RD.double().T
    left_NR, inner_B = torch.linalg.qr(B_NR)
    right_DR, inner_A = torch.linalg.qr(A_DR)
    U, S, Vh = torch.linalg.svd(inner_B @ inner_A.T, full_matrices=False)
    cutoff = torch.finfo(torch.float64).eps * max(factors.shape) * (S[0] if S.numel() else 0.0)
    keep = max(1, int((cutoff < S).sum()))
    root = S[:keep].sqrt()
    return Factors(left_NR @ (U[:, :keep] * root), ((right_DR @ Vh[:keep].T) * root).T, factors.layout)


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
    """|| a.B a.A - b.B b.A ||_F for factors that differ little, column by column; b may lack the last columns.

    The difference is E_B A + B' E_A with E the differences of the factors; only products of R x R Gram matrices
    are summed, so nothing large cancels. Cost: a few (N + D) R^2 multiplications, no decomposition.
    """
    missing = a.rank - b.rank
    left, right = pad(b.B_NR.double(), (0, missing)), pad(b.A_RD.double(), (0, 0, 0, missing))
    E_B, E_A = a.B_NR.double() - left, a.A_RD.double() - right
    A = a.A_RD.double()
    first = ((E_B.T @ E_B) * (A @ A.T)).sum()
    second = ((left.T @ left) * (E_A @ E_A.T)).sum()
    cross = ((E_B.T @ left) * (A @ E_A.T)).sum()
    return math.sqrt(max(0.0, float(first + second + 2 * cross)))


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
