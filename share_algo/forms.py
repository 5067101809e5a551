"""Smaller storage forms of a subspace. The error is measured and goes into the certificates.

    bfloat16    everything but heads
    int8        everything but heads, with one scale a column (see quantise.py)

A quantised subspace holds float32 tensors whose values lie on the form's grid, so that storing them is exact; its
columns are no longer orthonormal, so it is for reading: `dequantise` makes it ready for merging again.
Heads stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from share_algo.canonical import drift_norm
from share_algo.certificate import ROUNDING, ErrorsReport
from share_algo.errors import AlgebraError
from share_algo.quantise import HEAD, reduced, restored
from share_algo.subspace import FLOAT32, Result, Subspace, require_float32
from share_algo.types import Basis, Coefficients, Directions

FORMS = (FLOAT32, "bfloat16", "int8")
Form = Literal["float32", "bfloat16", "int8"]


class QuantiseReport(ErrorsReport):
    """What quantising did; its errors are measured."""


def quantise(subspace: Subspace, form: Form) -> Result[QuantiseReport]:
    """The same subspace with every number of basis and coefficients on the form's grid.

    Cost: every task is read twice, one at a time: T (N K + D L) R.
    """
    started = time.perf_counter()
    require_float32(subspace)
    if form not in FORMS[1:]:
        raise AlgebraError(f"a storage form is one of {', '.join(FORMS[1:])}, not {form!r}")
    blocks = tuple(
        {m: d.with_stored(lambda kind, tensor: _on_grid(kind, tensor, form)) for m, d in block.items()}
        for block in subspace.basis.blocks
    )
    basis = Basis(blocks)
    tasks, certificates, errors = {}, {}, {}
    for task, entry in subspace.tasks.items():
        coefficients = {
            m: Coefficients(_on_grid("P/", c.P_KR, form), _on_grid("Q/", c.Q_LR, form), c.layout)
            for m, c in entry.coefficients.items()
        }
        tasks[task] = entry.with_coefficients(coefficients)
        read = {m: (c.read(subspace.basis[m]), coefficients[m].read(basis[m])) for m, c in entry.coefficients.items()}
        error = math.hypot(*(drift_norm(a, b) for a, b in read.values()))
        before = subspace.certificate(task)
        certificates[task] = before.moved(error)
        errors[task] = error / before.norm if before.norm else 0.0
    after = subspace.but(
        basis=basis, tasks=MappingProxyType(tasks), certificates=MappingProxyType(certificates), form=form
    )
    seconds = time.perf_counter() - started
    return Result(after, QuantiseReport(errors, after.certificates, subspace.nbytes(), after.nbytes(), seconds))


def dequantise(subspace: Subspace) -> Subspace:
    """Orthonormal float32 columns again, every task the same to float32 rounding. The quantising error stays.

    QR is triangular, so the first K columns span what they spanned and narrower tasks keep their width.
    """
    if subspace.form == FLOAT32:
        return subspace
    block: dict[str, Directions] = {}
    maps: dict[str, dict[str, Tensor]] = {}
    for module in subspace.basis:
        maps[module] = {}

        def orthonormal(side: str, tensor: Tensor, found: dict[str, Tensor] = maps[module]) -> Tensor:
            columns, found[side] = torch.linalg.qr(tensor.double())
            return columns.float()

        block[module] = subspace.basis[module].with_stored(orthonormal)
    tasks, certificates = {}, {}
    for task, entry in subspace.tasks.items():
        coefficients = {m: _mapped(maps[m], c) for m, c in entry.coefficients.items()}
        tasks[task] = entry.with_coefficients(coefficients)
        before = subspace.certificate(task)
        certificates[task] = before.moved(ROUNDING * before.norm)
    return subspace.but(
        basis=Basis((block,) if block else ()),
        tasks=MappingProxyType(tasks),
        certificates=MappingProxyType(certificates),
        form=FLOAT32,
    )


def in_form(tensors: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Named tensors as they are stored in `form`; heads as they are. Exact for values on the grid."""
    heads = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    others = {name: tensor for name, tensor in tensors.items() if name not in heads}
    small = reduced(others) if form == "int8" else {name: t.to(torch.bfloat16) for name, t in others.items()}
    return {**small, **heads}


def stored_nbytes(subspace: Subspace, *, coefficients_only: bool) -> int:
    """Bytes of all tensors in the subspace's form."""
    own = sum(
        _nbytes({"P/": c.P_KR, "Q/": c.Q_LR}, subspace.form)
        for e in subspace.tasks.values()
        for c in e.coefficients.values()
    ) + sum(t.numel() * t.element_size() for e in subspace.tasks.values() for t in e.head.values())
    if coefficients_only:
        return own
    directions = [d.stored for block in subspace.basis.blocks for d in block.values() if d.stored]
    return own + sum(_nbytes({"out/": d.out_NK, "in/": d.in_DL}, subspace.form) for d in directions)


def _nbytes(tensors: Mapping[str, Tensor], form: str) -> int:
    return sum(t.numel() * t.element_size() for t in in_form(tensors, form).values())


def _on_grid(kind: str, tensor: Tensor, form: str) -> Tensor:
    return restored(in_form({kind: tensor.float()}, form))[kind]


def _mapped(maps: Mapping[str, Tensor], c: Coefficients) -> Coefficients:
    """No map: the columns are derived and were orthonormal all along."""
    (K, L), (P_KR, Q_LR) = c.widths, (c.P_KR.double(), c.Q_LR.double())
    if maps:
        P_KR, Q_LR = maps["out/"][:K, :K] @ P_KR, maps["in/"][:L, :L] @ Q_LR
    return Coefficients(P_KR.float(), Q_LR.float(), c.layout)
