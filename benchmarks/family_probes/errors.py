"""Families 2, 3, 4 and 6: what is claimed is what is measured; the error at equal size; the error under drift."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.algebra import dense_joint
from benchmarks.algebra_samples import PLANTS, Sample, common_start, drifting, relative_error
from benchmarks.family_probes.probe import Library, Outcome, Place, Probe, first_line, mean_error, worst_error

TARGET = 0.05
COLUMNS = 32
FLOAT32 = 1e-6


def _claims(made: Library, samples: dict[str, Sample], place: Place) -> Outcome:
    """The task where claim and truth are furthest apart."""
    worst = (0.0, 0.0, 0.0, False)
    for task, sample in samples.items():
        claimed, bound = made.claim(task, place.folder / "adapters" / task)
        true = relative_error(sample, made.read(task))
        off = abs(np.log((claimed + FLOAT32) / (true + FLOAT32)))
        worst = max(worst, (off, claimed, true, bound))
    _, claimed, true, bound = worst
    holds = abs(claimed - true) <= 0.01 * true + FLOAT32 or (bound and claimed >= true)
    return Outcome.judged(f"claims {'at most ' * bound}{claimed:.2g}, error {true:.2g}", holds)


def _named(samples: list[Sample]) -> dict[str, Sample]:
    return {f"t{i}": sample for i, sample in enumerate(samples)}


def _after_add(library: type[Library], place: Place) -> Outcome:
    samples = list(common_start(9, 256, 2, 8, 24, 0.04))
    folders = place.written(samples)
    new = folders.pop("t8")
    made = library.built(folders, error=TARGET)
    made.add("t8", new, library.ways[-1])
    return _claims(made, {"t8": samples[8]}, place)


def _at_a_size(library: type[Library], place: Place) -> Outcome:
    samples = list(common_start(16, 256, 2, 8, 24, 0.04))
    return _claims(library.built(place.written(samples), columns=COLUMNS), _named(samples), place)


def _streamed(library: type[Library], place: Place) -> Outcome:
    samples = list(common_start(24, 256, 2, 8, 24, 0.04))
    return _claims(library.streamed(place.written(samples), COLUMNS), _named(samples), place)


def _plant(plant: str, library: type[Library], place: Place) -> Outcome:
    samples = list(PLANTS[plant](32, 384, 2, 8, 24, 0.3 if "mean" in plant else 0.04))
    error = mean_error(library.built(place.written(samples), columns=COLUMNS), samples)
    return Outcome(f"error {error:.3f}", "", error)


def _optimum(library: type[Library], place: Place) -> Outcome:
    samples = list(common_start(24, 96, 1, 4, 24, 0.3))
    made = library.built(place.written(samples), columns=16)
    errors = [relative_error(s, made.read(t)) for t, s in _named(samples).items()]
    ratio = float(np.sqrt(np.mean(np.square(errors)))) / min(dense_joint(samples, 16, start) for start in (None, 1, 2))
    return Outcome.judged(f"{ratio:.4g} times the optimum's error", ratio <= 1.01)


def _drift(error: float | None, library: type[Library], place: Place) -> Outcome:
    """The worst of 48 tasks after 40 adds to eight, by each way of adding; the verdict is for the best way."""
    samples = list(drifting(48, 256, 1, 4, 24, 0.15))
    folders = list(place.written(samples).items())
    found = {}
    for way in library.ways:
        try:
            made = library.built(dict(folders[:8]), error=error)
            for task, folder in folders[8:]:
                made.add(task, folder, way)
            found[way] = worst_error(made, _named(samples))
        except Exception as raised:
            found[first_line(raised)] = np.inf
    cell = "; ".join(f"{way} {worst:.2g}" for way, worst in found.items())
    return Outcome.judged(cell, min(found.values()) <= TARGET)


PROBES = [
    Probe(2, "after an add", _after_add),
    Probe(2, "at a fixed size", _at_a_size),
    Probe(2, "after a streamed build", _streamed),
    Probe(3, "common-A start, K = 32", partial(_plant, "common-A start"), compare=True),
    Probe(3, "of the joint optimum", _optimum),
    Probe(4, "shared columns", partial(_plant, "shared columns"), compare=True),
    Probe(4, "shared flattened mean", partial(_plant, "shared flattened mean"), compare=True),
    Probe(6, "by default", partial(_drift, None)),
    Probe(6, f"told {TARGET:.0%}", partial(_drift, TARGET)),
]
