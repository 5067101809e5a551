"""The best shared columns for many small cores: a weighted Tucker-2 problem, solved by alternation.

For orthonormal columns M_out (K x k) and M_in (L x l), maximise  sum_t w_t || M_out^T C_t M_in ||_F^2 , which is the
same as losing least (De Lathauwer, De Moor, Vandewalle 2000: start from the eigenvectors of sum w C C^T and
sum w C^T C, then improve one side at a time, HOOI). Cores stay factored, C_t = P_t Q_t^T: nothing has size N or D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from share_algo.types import Coefficients

IMPROVEMENT_MIN = 1e-9
"""Stop when a round gains less than this part of all energy."""

TASKS_AT_ONCE = 32
"""So that what is computed on the way takes no memory that grows with the number of tasks."""


@dataclass(frozen=True)
class Cores:
    """One module's cores of T tasks, padded with zeros: core t = P_TKR[t] @ Q_TLR[t].T.

    Held as the tasks hold them, in float32; computed with in float64.
    """

    P_TKR: Tensor
    Q_TLR: Tensor
    weight_T: Tensor

    @staticmethod
    def of(each: Sequence[Coefficients], widths: tuple[int, int], weights: Sequence[float]) -> Cores:
        rank = max(c.P_KR.shape[1] for c in each)
        like = torch.zeros(0, dtype=each[0].P_KR.dtype, device=each[0].P_KR.device)
        P_TKR, Q_TLR = (like.new_zeros(len(each), width, rank) for width in widths)
        for t, c in enumerate(each):
            P_TKR[t, : c.P_KR.shape[0], : c.P_KR.shape[1]] = c.P_KR
            Q_TLR[t, : c.Q_LR.shape[0], : c.Q_LR.shape[1]] = c.Q_LR
        return Cores(P_TKR, Q_TLR, like.double().new_tensor(list(weights)))

    def lost_T(self, M_out: Tensor, M_in: Tensor) -> Tensor:
        """|| C_t - M_out M_out^T C_t M_in M_in^T ||_F for each task, from two orthogonal parts: nothing cancels."""
        return torch.cat([_lost_T(P_TKR, Q_TLR, M_out, M_in) for P_TKR, Q_TLR in _few(self.P_TKR, self.Q_TLR)])

    def needed(self, M_out: Tensor, M_in: Tensor, allowed_T: Tensor) -> tuple[int, int]:
        """How many of the first columns a side do: without that side's others no task loses more than `allowed_T`."""
        few = [_behind_T(P_TKR, Q_TLR, M_out, M_in) for P_TKR, Q_TLR in _few(self.P_TKR, self.Q_TLR)]
        sides = (torch.cat(side) > allowed_T.square()[:, None] for side in zip(*few, strict=True))
        k, width_in = (int(is_needed.sum(1).max()) for is_needed in sides)
        return k, width_in

    def grams(self) -> tuple[Tensor, Tensor]:
        """sum w C C^T and sum w C^T C."""
        return _gram(self.P_TKR, self.Q_TLR, self.weight_T), _gram(self.Q_TLR, self.P_TKR, self.weight_T)

    def norm_T(self) -> Tensor:
        return torch.cat([_energy_T(*few) for few in _few(self.P_TKR, self.Q_TLR)]).clamp(min=0).sqrt()


def tucker(cores: Cores, k: int, width_in: int, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """(M_out K x k, M_in L x width_in), the weighted optimum nearest to the HOSVD start.

    Never worse than the start. Cost per round: T R (K^2 + L^2) and two eigendecompositions.
    """
    M_in, _ = leading(_gram(cores.Q_TLR, cores.P_TKR, cores.weight_T), width_in)
    total = float((cores.norm_T().square() * cores.weight_T).sum())
    before = -1.0
    for _ in range(max(1, rounds)):
        M_out, _ = leading(_gram(cores.P_TKR, cores.Q_TLR, cores.weight_T, M_in), k)
        M_in, kept = leading(_gram(cores.Q_TLR, cores.P_TKR, cores.weight_T, M_out), width_in)
        if kept - before <= IMPROVEMENT_MIN * total:
            break
        before = kept
    return M_out, M_in


def smallest(cores: Cores, allowed_T: Tensor, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """The smallest columns found with which no task loses more than `allowed_T`: both sides together, then each."""
    K, L = cores.P_TKR.shape[1], cores.Q_TLR.shape[1]

    def fits(k: int, width_in: int, rounds: int = 3) -> bool:
        return bool((cores.lost_T(*tucker(cores, k, width_in, rounds)) <= allowed_T).all())

    both = _bisect(max(K, L), lambda size: fits(min(size, K), min(size, L)))
    k = _bisect(min(both, K), lambda size: fits(size, min(both, L)))
    width_in = _bisect(min(both, L), lambda size: fits(k, size))
    for tried in (rounds, 3):  # refined for the mean, a task at the limit may lose a little more: then as searched
        columns = tucker(cores, k, width_in, tried)
        if (cores.lost_T(*columns) <= allowed_T).all():
            return columns
    return torch.eye(K).to(cores.weight_T), torch.eye(L).to(cores.weight_T)


def _bisect(high: int, fits: Callable[[int], bool]) -> int:
    """The smallest size in [0, high] that fits, if larger ones always do; `high` is taken to fit."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return high


def _lost_T(P_TKR: Tensor, Q_TLR: Tensor, M_out: Tensor, M_in: Tensor) -> Tensor:
    inside_P = M_out @ (M_out.T @ P_TKR)
    outside_P, outside_Q = P_TKR - inside_P, Q_TLR - M_in @ (M_in.T @ Q_TLR)
    return (_energy_T(outside_P, Q_TLR) + _energy_T(inside_P, outside_Q)).clamp(min=0).sqrt()


def _behind_T(P_TKR: Tensor, Q_TLR: Tensor, M_out: Tensor, M_in: Tensor) -> tuple[Tensor, Tensor]:
    """Energy of each task in each column and all after it, out and in."""
    P_TkR, Q_TlR = M_out.T @ P_TKR, M_in.T @ Q_TLR
    each = ((X @ (Y.mT @ Y) * X).sum(2).clamp(min=0) for X, Y in ((P_TkR, Q_TlR), (Q_TlR, P_TkR)))
    out, inn = (energy.flip(1).cumsum(1).flip(1) for energy in each)
    return out, inn


def _gram(X_TKR: Tensor, Y_TLR: Tensor, weight_T: Tensor, inside: Tensor | None = None) -> Tensor:
    """sum_t w_t X_t (Y_t^T Y_t) X_t^T, K x K; of Y what lies inside the columns, where there are some."""
    gram = torch.zeros(X_TKR.shape[1], X_TKR.shape[1]).to(weight_T)
    for X, Y, weight in _few(X_TKR, Y_TLR, weight_T):
        Y = Y if inside is None else inside.T @ Y
        wide = (X @ ((Y.mT @ Y) * weight[:, None, None])).transpose(0, 1).flatten(1)
        gram += wide @ X.transpose(0, 1).flatten(1).T
    return (gram + gram.T) / 2


def _few(*each: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors for a few tasks after another, in float64."""
    for few in zip(*(x.split(TASKS_AT_ONCE) for x in each), strict=True):
        yield tuple(x.double() for x in few)


def leading(gram: Tensor, size: int) -> tuple[Tensor, float]:
    """Eigenvectors of the `size` largest eigenvalues, and the sum of these."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors.flip(1)[:, :size], float(values.flip(0)[:size].sum())


def _energy_T(X_TKR: Tensor, Y_TLR: Tensor) -> Tensor:
    """|| X_t Y_t^T ||_F^2."""
    return ((X_TKR.mT @ X_TKR) * (Y_TLR.mT @ Y_TLR)).sum((1, 2))
