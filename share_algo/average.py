"""Several contributions to one task. In shared coordinates their average is exact: C <- sum_i w_i C_i.

Averaging lora_A and lora_B separately is not: the mean of products is no product of means.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from share_algo.append import DEFAULT_TOLERANCE, ROUNDING, ModuleReport, append
from share_algo.canonical import balanced, product_norm, truncated
from share_algo.certificate import ROUNDING as STORING
from share_algo.certificate import Certificate
from share_algo.errors import AlgebraError
from share_algo.names import check_task_name
from share_algo.subspace import Merged, MergeReport, Result, Subspace, base_model_of, check_adapter, placed
from share_algo.types import Adapter, Coefficients, Factors, TaskEntry


def average(
    subspace: Subspace,
    task: str,
    contributions: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Merged:
    """`task` becomes sum_i w_i dW_i, and its head the same sum of heads. weights: else 1/n each.

    Each contribution is appended within `tolerance`; the sum itself loses nothing but float32 rounding. The error
    claimed is the triangle inequality's bound. AlgebraError for modules or heads that differ, or as `merge` does.
    """
    started = time.perf_counter()
    check_task_name(task)
    if not contributions:
        raise AlgebraError("there is nothing to average")
    shares = [1 / len(contributions)] * len(contributions) if weights is None else list(weights)
    before, after, entries, modules = subspace, subspace, [], dict[str, ModuleReport]()
    for contribution in contributions:
        check_adapter(before, contribution)
        appended = append(after.basis, contribution, tolerance=tolerance)
        after = placed(after, task, appended, base_model_of(contribution))
        entries.append((appended.update.entry, after.certificates[task]))
        modules.update(appended.modules)
    entry = combine([e for e, _ in entries], shares)
    bound = sum(abs(w) * c.error for w, (_, c) in zip(shares, entries, strict=True))
    norm = math.hypot(*(product_norm(c.P_KR.double(), c.Q_LR.double()) for c in entry.coefficients.values()))
    certificate = Certificate(norm, STORING * norm, STORING * norm).summed(bound)
    after = after.with_task(task, entry, certificate)
    seconds = time.perf_counter() - started
    return Result(after, MergeReport(task, modules, certificate, seconds, after))


def combine(entries: Sequence[TaskEntry], weights: Sequence[float], *, tolerance: float = 0.0) -> TaskEntry:
    """sum_i w_i C_i, and the same sum of heads, for entries of one basis (each read with its own first columns).

    The rank is that of the sum, at most min(K, L); `tolerance`: relative error that a smaller rank may cost, in each
    module. FedAsync's C <- (1 - s) C + s C_i (arXiv:1903.03934) has weights (1 - s, s).
    """
    if len(entries) != len(weights) or not entries or not all(math.isfinite(w) for w in weights):
        raise AlgebraError(f"{len(entries)} entries and {len(weights)} weights, which must be finite")
    _same_modules([e.coefficients for e in entries])
    pairs = list(zip(weights, entries, strict=True))
    parts = {m: [(w, e.coefficients[m]) for w, e in pairs] for m in entries[0].coefficients}
    coefficients = {m: _summed(each, m, tolerance) for m, each in parts.items()}
    return TaskEntry(coefficients, _mean_head([e.head for e in entries], weights), entries[0].settings)


def mixed(parts: Sequence[tuple[float, Adapter]]) -> Adapter:
    """sum_i w_i dW_i as one adapter, whatever bases its parts are kept in; heads: the same sum, in float32 at least.

    The factors of all parts side by side, so that nothing is lost; `append` finds the rank that it has. Settings are
    the first part's. AlgebraError for modules, layouts or heads that differ.
    """
    first = parts[0][1]
    if len(parts) == 1 and parts[0][0] == 1:
        return first
    _same_modules([a.factors for _, a in parts])
    factors = {m: _beside([(w, a.factors[m]) for w, a in parts], m) for m in first.factors}
    return Adapter(factors, _mean_head([_widened(a.head) for _, a in parts], [w for w, _ in parts]), first.settings)


def _same_modules(each: Sequence[Mapping[str, object]]) -> None:
    for other in each:
        if odd := sorted(other.keys() ^ each[0].keys()):
            raise AlgebraError(f"{odd[0]}: only some of the contributions have this module")


def _beside(parts: Sequence[tuple[float, Factors]], module: str) -> Factors:
    if len({(f.layout, f.shape) for _, f in parts}) > 1:
        raise AlgebraError(f"{module}: of another shape or layout in some contribution")
    B_NR = torch.cat([w * f.B_NR.double() for w, f in parts], 1)
    return Factors(B_NR, torch.cat([f.A_RD.double() for _, f in parts]), parts[0][1].layout)


def _widened(head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums of sums would drift in fewer bits. What is no floating-point number is left for `_mean_head` to refuse."""
    return {
        name: t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t
        for name, t in head.items()
    }


def _summed(parts: Sequence[tuple[float, Coefficients]], module: str, tolerance: float) -> Coefficients:
    K, L = (max(c.widths[side] for _, c in parts) for side in (0, 1))
    whole = _beside([(w, Factors(_padded(c.P_KR, K), _padded(c.Q_LR, L).T, c.layout)) for w, c in parts], module)
    if min(K, L) == 0:
        return Coefficients(whole.B_NR[:, :1].float(), whole.A_RD[:1].T.float(), whole.layout)
    whole = balanced(whole)
    energy = float(whole.A_RD.square().sum(1).square().sum())
    whole = truncated(whole, max(tolerance, ROUNDING / 4) ** 2 * energy)
    return Coefficients(whole.B_NR.float(), whole.A_RD.T.float(), whole.layout)


def _padded(X_KR: Tensor, rows: int) -> Tensor:
    return torch.nn.functional.pad(X_KR.double(), (0, 0, 0, rows - X_KR.shape[0]))


def _mean_head(heads: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    mean = {}
    for name, like in heads[0].items():
        each = [head.get(name) for head in heads]
        if any(t is None or t.shape != like.shape for t in each) or not like.is_floating_point():
            raise AlgebraError(f"head {name}: of another shape in some contribution, or no floating-point numbers")
        weighted = [w * head[name].double() for w, head in zip(weights, heads, strict=True)]
        mean[name] = torch.stack(weighted).sum(0).to(like.dtype)
        if not mean[name].isfinite().all():
            raise AlgebraError(f"head {name}: the sum has numbers beyond what {like.dtype} holds")
    if odd := sorted({name for head in heads for name in head} - mean.keys()):
        raise AlgebraError(f"head {odd[0]}: only some of the contributions have it")
    return mean
