"""Families 5 and 10: what one more adapter costs among many, and what memory a streamed build takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.algebra_add import padded
from benchmarks.algebra_build import alone
from benchmarks.algebra_common import TOLERANCE, K, L, S, cpu_seconds
from benchmarks.algebra_samples import Sample, shared_columns, write_folder
from benchmarks.family_probes.ours import ShareAlgo
from benchmarks.family_probes.probe import Library, Outcome, Place, Probe

FLAT = 1.2
BUILD_MB = 1000.0
"""On L whole; in proportion for some of its modules. (Coefficients do not shrink with the width.)"""
TASKS = 128
FEW, PEERS_MANY, PEERS_MANY_FULL, MANY = 8, 512, 128, 10_000


def _add(error: float | None, library: type[Library], place: Place) -> Outcome:
    """CPU seconds of an add to many tasks over those to eight, for the best way of adding; the hundred adapters are
    given under further names. Ours can be told 10,000 names without a build: merging looks at none of them."""
    samples = list(shared_columns(103, **(S if place.full else {**S, "d": 192, "modules": 6})))
    folders = list(place.written(samples).values())
    many = PEERS_MANY_FULL if place.full else PEERS_MANY
    made = [library.built({f"t{i}": folders[i % 100] for i in range(n)}, error=error) for n in (FEW, many)]
    if isinstance(made[1], ShareAlgo):
        made[1].made, many = padded(made[1].made, MANY), MANY
    few, more = (_seconds(each, folders[100:]) for each in made)
    cells = [f"{way} {more[way] / few[way]:.3g} times {few[way]:.3f} s" for way in library.ways]
    holds = min(more[way] / few[way] for way in library.ways) <= FLAT
    return Outcome.judged(f"{'; '.join(cells)} at {many:,} tasks", holds)


def _seconds(made: Library, folders: list[Path]) -> dict[str, float]:
    """By way of adding, the least of all the folders."""
    return {
        way: min(
            cpu_seconds(lambda task=f"{way}{i}", folder=folder, way=way: made.add(task, folder, way))
            for i, folder in enumerate(folders)
        )
        for way in made.ways
    }


def _streamed(library: type[Library], folders: list[str]) -> Callable[[str], Sample]:
    return library.streamed({Path(f).name: Path(f) for f in folders}, K).read


def _build(library: type[Library], place: Place) -> Outcome:
    """Peak memory of a process of its own, above what it had after its imports and LAPACK's code."""
    size = {**L, "modules": 32 if place.full else 2}
    for i, sample in enumerate(shared_columns(TASKS, **size)):
        write_folder(sample, place.folder / f"t{i}")
    found = alone(partial(_streamed, library), str(place.folder), TASKS)
    bound = BUILD_MB * size["modules"] / 32
    cell = f"{found['peak_MB']:,.0f} of {bound:,.0f} MB, {found['cpu_s']:.0f} s, error {found['error']:.2g}"
    return Outcome.judged(cell, found["peak_MB"] <= bound)


PROBES = [
    Probe(5, "by default", partial(_add, None), seconds=300, seconds_full=600),
    Probe(5, f"told {TOLERANCE:.0%}", partial(_add, TOLERANCE), seconds=300, seconds_full=600),
    Probe(10, "peak memory", _build, seconds=900, seconds_full=900),
]
