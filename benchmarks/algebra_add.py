"""The sections `add` and `add-large`: CPU seconds for one more adapter, by number of tasks there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import algebra_peers as peers
from benchmarks.algebra_common import TOLERANCE, K, L, S, adapter, cpu_seconds, sample_of
from benchmarks.algebra_samples import IncrementalSvd, Sample, relative_error, shared_columns, write_folder
from share_algo import Adapter, Subspace, merge

MORE = 3
"""Adapters that are added for the clock, in turn; the least time counts."""


class Grown:
    """Our subspace and plain incremental SVD's, fed alike."""

    def __init__(self) -> None:
        self.ours, self.ref, self.tasks = Subspace.empty(), IncrementalSvd(K), 0

    def add(self, sample: Sample) -> None:
        self.ours = merge(self.ours, f"t{self.tasks}", adapter(sample), tolerance=TOLERANCE).subspace
        self.ref.add(f"t{self.tasks}", sample)
        self.tasks += 1

    def width(self) -> int:
        return max(max(w) for w in self.ours.basis.widths().values())

    def ways(self) -> list[peers.Way]:
        """Ours first."""
        return [
            _merging(f"ours ({self.width()})", self.ours),
            peers.Way(f"ref ({K})", lambda s, _: s, lambda s, t: self.ref.add(t, s), self.ref.read, self.ref.nbytes),
        ]


def _merging(name: str, made: Subspace) -> peers.Way:
    """Merging is pure: every try is made to the same subspace."""
    last: dict[str, Subspace] = {"": made}

    def add(one: Adapter, task: str) -> None:
        last[""] = merge(made, task, one, tolerance=TOLERANCE).subspace

    return peers.Way(name, lambda s, _: adapter(s), add, lambda t: sample_of(last[""].adapter(t)), made.nbytes)


def _measured(tasks: int, way: peers.Way, more: list[Sample], ours: peers.Way) -> dict[str, Any]:
    """The least CPU seconds of its tries, of ours in the same moments, and the error of dW of the last adapter added.

    In turn, as ours takes milliseconds: a burst of other work on the machine would otherwise meet only one of them.
    """
    nbytes, seconds, beside = way.nbytes(), [], []
    for i in range(way.tries):
        seconds.append(_once(way, more[i % len(more)], task := f"{way.prefix}{i}"))
        beside += [_once(ours, sample, task) for sample in more]
    error = relative_error(more[(way.tries - 1) % len(more)], way.read(task))
    row = {"tasks": tasks, "method": way.name, "CPU ms": 1e3 * min(seconds), "error": error, "MB": nbytes / 1e6}
    return {**row, "ours CPU ms": 1e3 * min(beside), "of ours": min(seconds) / min(beside)}


def _once(way: peers.Way, sample: Sample, task: str) -> float:
    one = way.ready(sample, task)
    return cpu_seconds(lambda: way.add(one, task))


def add(quick: bool) -> list[dict]:
    """Set S. From 1,000 tasks on these are further names for the first ones: merging looks at none of them."""
    counts = (8, 32) if quick else (8, 32, 128)
    samples = list(shared_columns(max(counts) + MORE, **S))
    more, grown, rows = samples[-MORE:], Grown(), []
    for tasks in counts:
        while grown.tasks < tasks:
            grown.add(samples[grown.tasks])
        ways = chain(known := grown.ways(), peers.ways(samples[:tasks], grown.ours.nbytes()))
        rows += [_measured(tasks, way, more, known[0]) for way in ways]
    few = _merging("", grown.ours)
    for tasks in () if quick else (1000, 10_000):
        rows.append(_measured(tasks, _merging(f"ours ({grown.width()})", padded(grown.ours, tasks)), more, few))
    return rows


def add_large(modules: int, quick: bool) -> list[dict]:
    """Set L, or some of its modules. Read from a disk: a hundred of these adapters would not fit in memory."""
    counts = (8, 16) if quick else (8, 32, 128)
    grown, rows = Grown(), []
    with tempfile.TemporaryDirectory() as folder:
        stream: Iterator[Sample] = shared_columns(max(counts) + MORE, modules=modules, **L)
        more = [next(stream) for _ in range(MORE)]
        for tasks in counts:
            while grown.tasks < tasks:
                sample = next(stream)
                write_folder(sample, Path(folder) / f"t{grown.tasks}")
                grown.add(sample)
            ways = chain(known := grown.ways(), peers.large_ways([f"{folder}/t{i}" for i in range(tasks)]))
            rows += [{"modules": modules, **_measured(tasks, way, more, known[0])} for way in ways]
    return rows


def padded(made: Subspace, tasks: int) -> Subspace:
    """As many tasks as said, by further names for those there are."""
    known = list(made.tasks)
    names = {f"copy{i}": known[i % len(known)] for i in range(tasks - len(known))}
    return made.but(
        tasks=MappingProxyType({**made.tasks, **{n: made.tasks[k] for n, k in names.items()}}),
        certificates=MappingProxyType({**made.certificates, **{n: made.certificates[k] for n, k in names.items()}}),
    )
