"""The section `bits`: what fewer bits a number are worth, at equal total bytes, for directions and for coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from benchmarks.algebra_common import adapter
from benchmarks.algebra_samples import shared_columns
from share_algo import Coefficients, Directions, Subspace, compact, merge
from share_algo.canonical import difference_norm

TASKS = (1, 8, 128)
"""One: an update on its way."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
SCALE_BYTES = 2
ERRORS = (0.1, 0.15, 0.2, 0.25, 0.3)


def _levels(bits: int, group: int) -> Callable[[Tensor], tuple[Tensor, float]]:
    """Symmetric steps with one scale for `group` numbers of a column (0: for the whole column)."""

    def rounded(tensor_NK: Tensor) -> tuple[Tensor, float]:
        rows = tensor_NK.shape[0]
        size = group or rows
        columns = torch.nn.functional.pad(tensor_NK.T, (0, -rows % size))
        parts = columns.unflatten(1, (-1, size))
        top = 2 ** (bits - 1) - 1
        scale = (parts.abs().amax(2, keepdim=True) / top).clamp_min(1e-30)
        nbytes = tensor_NK.numel() * bits / 8 + scale.numel() * SCALE_BYTES
        return ((parts / scale).round() * scale).flatten(1)[:, :rows].T, nbytes

    return rounded


def _bfloat16(tensor: Tensor) -> tuple[Tensor, float]:
    return tensor.bfloat16().float(), 2.0 * tensor.numel()


DIRECTIONS = {"int8": _levels(8, 0), "int4": _levels(4, 0), "int4 by 32": _levels(4, 32)}
COEFFICIENTS = {"bf16": _bfloat16, "int8": _levels(8, 0), "int4": _levels(4, 0)}


def bits(quick: bool) -> list[dict]:
    """Over all widths, by form of directions and coefficients: the least mean error of dW within some total bytes, and
    (rows with `error`) the fewest kB that keep the mean error within it; none where no width does."""
    size = {"d": 96 if quick else 768, "modules": 1, "r": 8, "shared": 64}
    rows: list[dict] = []
    for tasks in TASKS[:2] if quick else TASKS:
        found = _measured(tasks, size)
        lengths = sorted(nbytes for form, nbytes, _ in found if form == ("int8", "bf16"))
        for error_max in ERRORS:
            row = {"tasks": tasks, "error": error_max}
            for form in product(DIRECTIONS, COEFFICIENTS):
                row["/".join(form)] = min((n / 1e3 for f, n, e in found if f == form and e <= error_max), default="")
            rows.append(row)
        for limit in lengths[1::4]:
            row = {"tasks": tasks, "kB": limit / 1e3}
            for form in product(DIRECTIONS, COEFFICIENTS):
                fits = [error for f, nbytes, error in found if f == form and nbytes <= limit]
                row["/".join(form)] = min(fits, default=1.0)
            rows.append(row)
    return rows


def _measured(tasks: int, size: dict) -> list[tuple[tuple[str, str], float, float]]:
    """(form, bytes, mean relative error of dW) by width. Shared directions matter less and less: 1, 1/2, 1/3, ..."""
    samples = list(shared_columns(tasks, noise=0.0, decay=0.5, **size))
    adapters = [adapter(sample) for sample in samples]
    whole = Subspace.empty()
    for i, one in enumerate(adapters):
        whole = merge(whole, f"t{i}", one, tolerance=1e-4).subspace
    found = []
    for width in WIDTHS:
        made = compact(whole, size=width).subspace
        for form in product(DIRECTIONS, COEFFICIENTS):
            kept, nbytes = _rounded(made, *form)
            errors = [_error(made, adapters[i], t, kept[t]) for i, t in enumerate(made.tasks)]
            found.append((form, nbytes, sum(errors) / len(errors)))
    return found


def _rounded(made: Subspace, directions: str, coefficients: str) -> tuple[dict, float]:
    """Tasks as read from rounded numbers, and the bytes of all of these."""
    total, columns, kept = 0.0, {}, {}
    for module in made.basis:
        (out, a), (inn, b) = (
            DIRECTIONS[directions](side) for side in (made.basis[module].out_NK, made.basis[module].in_DL)
        )
        columns[module], total = Directions(out, inn), total + a + b
    for task, entry in made.tasks.items():
        kept[task] = {}
        for module, c in entry.coefficients.items():
            (P, a), (Q, b) = COEFFICIENTS[coefficients](c.P_KR), COEFFICIENTS[coefficients](c.Q_LR)
            kept[task][module], total = Coefficients(P, Q).read(columns[module]), total + a + b
    return kept, total


def _error(made: Subspace, true, task: str, kept: dict) -> float:  # type: ignore[no-untyped-def]
    lost = math.hypot(*(difference_norm(true.factors[m], f) for m, f in kept.items()))
    return lost / made.certificates[task].norm
