"""The sections `add` and `add-large`: CPU seconds for one more adapter, by number of tasks there are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from benchmarks import algebra_peers as peers
from benchmarks.algebra_common import TOLERANCE, K, L, S, adapter, cpu_seconds
from benchmarks.algebra_samples import IncrementalSvd, Sample, shared_columns, write_folder
from share_algo import Subspace, merge

MORE = 3
"""Adapters that are added for the clock, each to the same subspace; the least counts."""


class Grown:
    """Our subspace and plain incremental SVD's, fed alike."""

    def __init__(self) -> None:
        self.ours, self.ref, self.tasks = Subspace.empty(), IncrementalSvd(K), 0

    def add(self, sample: Sample) -> None:
        self.ours = merge(self.ours, f"t{self.tasks}", adapter(sample), tolerance=TOLERANCE).subspace
        self.ref.add(f"t{self.tasks}", sample)
        self.tasks += 1

    def row(self, more: list[Sample]) -> dict[str, float]:
        ours = self.ours
        width = max(max(w) for w in ours.basis.widths().values())
        adapters = [adapter(s) for s in more]
        own = min(cpu_seconds(lambda a=a: merge(ours, "x", a, tolerance=TOLERANCE)) for a in adapters)
        ref = min(cpu_seconds(lambda s=s: self.ref.add("x", s)) for s in more)
        return {"tasks": self.tasks, "K": width, "ours": own, "ref": ref}


def add(quick: bool) -> list[dict]:
    """Set S. From 1,000 tasks on these are further names for the first ones: merging looks at none of them."""
    counts = (8, 32) if quick else (8, 32, 128)
    samples = list(shared_columns(max(counts) + MORE, **S))
    grown, rows = Grown(), []
    for tasks in counts:
        while grown.tasks < tasks:
            grown.add(samples[grown.tasks])
        rows.append({**grown.row(samples[-MORE:]), **peers.add(samples[:tasks], samples[-MORE:])})
    for tasks in () if quick else (1000, 10_000):
        many = padded(grown.ours, tasks)
        more = [adapter(s) for s in samples[-MORE:]]
        own = min(cpu_seconds(lambda a=a, m=many: merge(m, "x", a, tolerance=TOLERANCE)) for a in more)
        rows.append({"tasks": tasks, "K": rows[-1]["K"], "ours": own})
    return [{**row, "times ours at the first": row["ours"] / rows[0]["ours"]} for row in rows]


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
            row = {"modules": modules, **grown.row(more)}
            rows.append({**row, **peers.add_large([f"{folder}/t{i}" for i in range(tasks)], more)})
    return rows


def padded(made: Subspace, tasks: int) -> Subspace:
    """As many tasks as said, by further names for those there are."""
    known = list(made.tasks)
    names = {f"copy{i}": known[i % len(known)] for i in range(tasks - len(known))}
    return made.but(
        tasks=MappingProxyType({**made.tasks, **{n: made.tasks[k] for n, k in names.items()}}),
        certificates=MappingProxyType({**made.certificates, **{n: made.certificates[k] for n, k in names.items()}}),
    )
