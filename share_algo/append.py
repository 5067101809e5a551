"""Append: the merge that forgets nothing.

The newcomer is projected on the basis; of what is left over, the fewest directions are kept that bring the relative
error of dW under the tolerance, and it gets the smallest rank that this allows. Old columns and old coefficients are
not touched, so every earlier task is bitwise what it was. Cost does not depend on how many tasks came before.

Departs from Share (arXiv:2602.06043, which recomputes one SVD over all tasks at every merge): nothing is
mean-centred, both sides are chosen together by the error of dW itself, and the error stated is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from share_algo.canonical import difference_norm, drift_norm, product_norm
from share_algo.certificate import Certificate
from share_algo.errors import AlgebraError
from share_algo.inside import Stack, held, stackable
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
        each = [(m.norm, m.error, m.rank_error) for m in self.modules.values()]
        norm, error, rank_error = (math.hypot(*values) for values in zip(*each, strict=True))
        return Certificate(norm, error, rank_error)

    @property
    def relative_error(self) -> float:
        """|| dW - kept ||_F / || dW ||_F over all modules together."""
        return self.certificate.relative_error


_Part = tuple[Directions, Coefficients, ModuleReport]


def append(basis: Basis, adapter: Adapter, *, tolerance: float = DEFAULT_TOLERANCE) -> Appended:
    """Express `adapter` in `basis` and the fewest new directions, each module within `tolerance`.

    tolerance: bound on ||dW - kept||_F / ||dW||_F per module, in [0, 1); below ROUNDING it counts as ROUNDING.
    Raises AlgebraError (the caller's fault) for NaN, Inf, rank 0, or shapes that differ from the basis's.
    Cost per module: (N K + D L) R + (N + D) R^2; decompositions of the residual only where directions are added.
    """
    if not 0 <= tolerance < 1:
        raise AlgebraError(f"tolerance must be in [0, 1), not {tolerance}")
    parts: dict[str, _Part] = {}
    for modules in stackable(adapter.factors):
        parts.update(_append_stack(modules, basis, adapter.factors, max(tolerance, ROUNDING)))
    parts = {m: parts[m] for m in adapter.factors}
    # a module that is zero still enters the basis, without columns: its shape must be known to read it
    block = {m: new for m, (new, _, _) in parts.items() if any(new.widths) or m not in basis}
    entry = TaskEntry({m: c for m, (_, c, _) in parts.items()}, adapter.head, adapter.settings)
    return Appended(Update(block, entry), {m: r for m, (_, _, r) in parts.items()})


def keep(basis: Basis, update: Update, base: Basis) -> Appended | None:
    """An update of `base` that brings no directions, as it is, bitwise, in a basis that begins with `base`'s columns.

    None where it brings some, or where the basis begins otherwise. Cost: at most one look at the columns.
    """
    if any(any(new.widths) for new in update.block.values()):
        return None
    reports = {}
    for module, own in update.entry.coefficients.items():
        if module not in basis or not _begins(basis, base, module, *own.widths):
            return None
        norm = product_norm(own.P_KR.double(), own.Q_LR.double())
        if not norm < torch.finfo(torch.float32).max:
            return None
        reports[module] = ModuleReport(0, 0, *basis[module].widths, 0.0, norm)
    return Appended(Update({}, update.entry), reports)


def _begins(basis: Basis, base: Basis, module: str, K: int, L: int) -> bool:
    """Whether both have the same first K and L columns."""
    if module not in base:
        return False
    ours, theirs = basis[module], base[module]
    if min(ours.widths[0], theirs.widths[0]) < K or min(ours.widths[1], theirs.widths[1]) < L:
        return False
    if ours is theirs:
        return True
    a, b = ours.first(K, L), theirs.first(K, L)
    return torch.equal(a.out_NK, b.out_NK) and torch.equal(a.in_DL, b.in_DL)


def _append_stack(
    modules: list[str], basis: Basis, factors: Mapping[str, Factors], tolerance: float
) -> Iterator[tuple[str, _Part]]:
    """The modules' parts, in their order. They are of one shape, rank, type and device."""
    each = {m: factors[m] for m in modules}
    columns = _columns(basis, each)
    stack = Stack.of(each, columns[0].out_NK.device)
    norms = stack.S_GR.norm(dim=1).tolist()
    for g, found in enumerate(held(columns, stack, tolerance)):
        module, old, layout = modules[g], columns[g], factors[modules[g]].layout
        if found is None:
            part = _placed(old, stack.factors(g, layout), norms[g], tolerance)
        else:
            report = ModuleReport(0, 0, *old.widths, found.error, norms[g])
            part = old.first(0, 0), Coefficients(found.P_KR, found.Q_LR, layout), report
        if not math.isfinite(part[2].error + part[2].norm):
            raise AlgebraError(f"{module}: the update is too large for float32")
        yield module, part


def _columns(basis: Basis, each: Mapping[str, Factors]) -> list[Directions]:
    """The modules' columns, on the basis's device; where it has none, on the factors'."""
    columns = [basis.columns(m, *f.shape) for m, f in each.items()]
    theirs = next(iter(each.values())).B_NR.device
    device = next((c.out_NK.device for c in columns if any(c.widths)), theirs)
    return [Directions(c.out_NK.to(device), c.in_DL.to(device)) for c in columns]


def _placed(old: Directions, whole: Factors, norm: float, tolerance: float) -> _Part:
    found = place(old, whole, (tolerance * norm) ** 2)
    kept = Coefficients(found.P_KR.float(), found.Q_LR.float(), whole.layout)
    columns = old.then(found.new) if any(found.new.widths) else old
    error = (difference_norm if found.rank_error else drift_norm)(whole, kept.read(columns))
    return found.new, kept, ModuleReport(*found.new.widths, *columns.widths, error, norm, found.rank_error)
