"""Whether an update is unlike the federation's others: a robust z-score of log ||dW||. Pure.

Median and MAD are those of what was merged (the newest NORMS_MAX), so one loud update cannot make room for the next; of
what other workers sent, so that nobody makes room for himself bit by bit. Both sides count: what is far too quiet
replaces a task by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from protos.fedshare.v1.federation_pb2 import Quarantine

NORMS_MAX = 300
NORMAL = 1.4826
"""A normal distribution's standard deviation, in MADs."""
MAD_MIN = 0.1
"""Tasks that are nearly equally loud are no reason to keep aside one that is a little louder."""


class Norm(NamedTuple):
    """||dW|| of an update that was merged, and whose it is."""

    worker: str
    value: float


def beside(worker: str, merged: Iterable[Norm], rule: Quarantine) -> list[float]:
    """By which norms an update of this worker is judged: those of others, or of all, where others sent too few."""
    merged = list(merged)
    others = [norm.value for norm in merged if norm.worker != worker]
    return others if len(others) >= max(1, rule.updates_min) else [norm.value for norm in merged]


def unlike(norm: float, norms: Sequence[float], rule: Quarantine) -> str:
    """Why an update with this norm is kept aside, beside those that were merged; empty where it is not."""
    logs = [math.log(n) for n in norms if n > 0]
    finite = math.isfinite(norm)  # what is not, is no update at all: the merge says so
    if not finite or not rule.deviations_max or len(logs) < max(1, rule.updates_min):
        return ""
    middle = median(logs)
    spread = NORMAL * max(MAD_MIN, median(abs(x - middle) for x in logs))
    deviations = (math.log(norm) - middle) / spread if norm else -math.inf
    if abs(deviations) <= rule.deviations_max:
        return ""
    return (
        f"||dW|| is {norm:.3g}, {abs(deviations):.1f} robust deviations {'above' if deviations > 0 else 'below'}"
        f" {math.exp(middle):.3g}, the median of {len(logs)} merged updates; {rule.deviations_max:g} are allowed"
    )
