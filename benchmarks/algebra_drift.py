"""The sections `drift` and `bounded`: what becomes of a subspace whose newcomers bring ever new directions."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import algebra_peers as peers
from benchmarks.algebra_common import TOLERANCE, adapter, sample_of
from benchmarks.algebra_samples import IncrementalSvd, Sample, drifting, relative_error
from share_algo import Subspace, compact, merge

BEFORE, ADDED = 8, 40
SPEED = 0.15
BUDGET, NARROW = 64, 24


def drift(quick: bool) -> list[dict]:
    """Eight adapters, then 40 more, one by one. Ours grows to its target, or is held to a budget of columns."""
    size = {"d": 96, "modules": 1, "r": 4} if quick else {"d": 768, "modules": 1, "r": 8}
    samples = list(drifting(BEFORE + ADDED, shared=24, speed=SPEED, **size))
    methods = {
        f"ours, target {TOLERANCE}": lambda: _ours(samples, None),
        f"ours, budget {BUDGET}": lambda: _ours(samples, BUDGET),
        f"ref, {BUDGET} columns": lambda: _ref(samples),
    }
    rows = []
    for name, method in methods.items():
        seconds, read, nbytes = method()
        rows.append({"method": name, **_row(samples, seconds, read, nbytes)})
    for name, (seconds, read, nbytes) in peers.drifting(samples[:BEFORE], samples[BEFORE:]).items():
        rows.append({"method": name, **_row(samples, seconds, read, nbytes)})
    return rows


Outcome = tuple[float, Callable[[str], Sample], int]


def _row(samples: list[Sample], seconds: float, read: Callable[[str], Sample], nbytes: int) -> dict:
    errors = [relative_error(s, read(f"t{i}")) for i, s in enumerate(samples)]
    return {
        "worst error": max(errors),
        "mean error": sum(errors) / len(errors),
        "above the target": sum(e > TOLERANCE for e in errors),
        "MB": nbytes / 1e6,
        "CPU s an adapter": seconds,
    }


def _ours(samples: list[Sample], budget: int | None) -> Outcome:
    made, started = Subspace.empty(), 0.0
    for i, sample in enumerate(samples):
        started = time.process_time() if i == BEFORE else started
        made = merge(made, f"t{i}", adapter(sample), tolerance=TOLERANCE, budget=budget).subspace
    seconds = (time.process_time() - started) / ADDED
    return seconds, lambda task: sample_of(made.adapter(task)), made.nbytes()


def _ref(samples: list[Sample]) -> Outcome:
    made, started = IncrementalSvd(BUDGET), 0.0
    for i, sample in enumerate(samples):
        started = time.process_time() if i == BEFORE else started
        made.add(f"t{i}", sample)
    seconds = (time.process_time() - started) / ADDED
    return seconds, made.read, made.nbytes()


def bounded(quick: bool) -> list[dict]:
    """Merges inside a budget, every one of which compacts. One module of d = 96."""
    counts = (8, 32, 64) if quick else (8, 32, 128, 1000, 10_000)
    size = {"d": 96, "modules": 1, "r": 4, "shared": 12, "speed": SPEED}
    made, seconds, rows = Subspace.empty(), [], []
    for i, sample in enumerate(drifting(counts[-1], **size)):
        one = adapter(sample)
        started = time.process_time()
        made = merge(made, f"t{i}", one, tolerance=TOLERANCE, budget=NARROW).subspace
        seconds.append(time.process_time() - started)
        if i + 1 in counts:
            rows.append({"tasks": i + 1, **_bounded_row(made, seconds)})
    return rows


def _bounded_row(made: Subspace, seconds: list[float]) -> dict:
    """Of the second half of all merges so far; beside it what one compaction that looks at every task takes."""
    late = sorted(seconds[len(seconds) // 2 :])
    started = time.process_time()
    compact(made, size=NARROW - 4)
    whole = time.process_time() - started
    return {"CPU s": sum(late) / len(late), "median": late[len(late) // 2], "longest": late[-1], "whole": whole}
