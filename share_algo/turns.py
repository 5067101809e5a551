"""Turning a subspace into fewer columns: the basis, and the tasks' coordinates in it.

A Turn of a module is (M_out K x k, M_in L x l), float64: orthonormal columns inside the old ones, or a product of such.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from share_algo.canonical import balanced
from share_algo.types import Basis, Coefficients, Factors, TaskEntry

Turn = tuple[Tensor, Tensor]


def turned_basis(basis: Basis, turns: Mapping[str, Turn]) -> Basis:
    """The same basis, its modules in `turns` with the new columns only, in one last block."""
    block = {module: basis[module].turned(*turn) for module, turn in turns.items()}
    left = [{m: d for m, d in old.items() if m not in turns} for old in basis.blocks]
    return Basis(tuple(b for b in left if b) + ((block,) if block else ()))


def turned_entry(entry: TaskEntry, turns: Mapping[str, Turn]) -> TaskEntry:
    """The task projected on the new columns; modules that are not in `turns` stay bitwise."""
    coefficients = {m: turned(c, turns[m]) if m in turns else c for m, c in entry.coefficients.items()}
    return entry.with_coefficients(coefficients)


def turned(old: Coefficients, turn: Turn) -> Coefficients:
    """M_out^T C M_in, of the smallest rank. A narrow task has coordinates in the first columns only."""
    (K, L), (M_out, M_in) = old.widths, turn
    P_KR, Q_LR = M_out[:K].T @ old.P_KR.double(), M_in[:L].T @ old.Q_LR.double()
    if P_KR.shape[1] > min(P_KR.shape[0], Q_LR.shape[0]) > 0:
        smaller = balanced(Factors(P_KR, Q_LR.T))
        P_KR, Q_LR = smaller.B_NR, smaller.A_RD.T
    return Coefficients(P_KR.float(), Q_LR.float(), old.layout)
