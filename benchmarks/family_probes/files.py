"""Family 9: names that are paths, names that collide, two writers at once, a removed task that comes back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.algebra_samples import Sample, shared_columns
from benchmarks.family_probes.probe import ALL_DIRECTIONS, Library, Outcome, Place, Probe, first_line, worst_error

ROUNDS = 20
CONTEXT = multiprocessing.get_context("fork")


def _samples(seed: int, tasks: int = 3) -> list[Sample]:
    return list(shared_columns(tasks, 32, 2, 4, 12, 0.02, seed=seed))


def _names(names: tuple[str, ...], library: type[Library], place: Place) -> Outcome:
    """Built, saved and read again, or refused; and what appeared beside the folder that was asked for."""
    store = place.folder / "inner" / "store"
    folders = dict(zip((*names, "plain"), place.written(_samples(0)).values(), strict=False))
    before = set(place.folder.rglob("*"))
    try:
        made = library.built(folders, columns=ALL_DIRECTIONS)
        made.save(store)
    except Exception as error:
        return Outcome.judged("refused", True, first_line(error, place.folder))
    outside = [p for p in set(place.folder.rglob("*")) - before if p.is_file() and not p.is_relative_to(store)]
    found = [f"writes {len(outside)} files outside its folder"] if outside else []
    try:
        again = library.loaded(store)
        lost = [task for task in folders if task not in again.tasks()]
        mixed = [task for task in folders if task not in lost and not _same(made.read(task), again.read(task))]
    except Exception as error:
        return Outcome.judged("; ".join([*found, "cannot be loaded"]), False, first_line(error, place.folder))
    found += [f"{task!r} is lost" for task in lost] + [f"{task!r} is another's" for task in mixed]
    return Outcome.judged("; ".join(found) or "kept apart", not found)


def _same(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(x, y) for m in one for x, y in zip(one[m], other[m], strict=True))


def _two_writers(library: type[Library], place: Place) -> Outcome:
    """Two processes save two subspaces with the same task names to one folder; it must be the one or the other."""
    store = place.folder / "store"
    saved = [_six_tasks(seed, library, place) for seed in (1, 2)]
    barrier = CONTEXT.Barrier(3)
    writers = [CONTEXT.Process(target=_write, args=(made, store, barrier)) for made in saved]
    for writer in writers:
        writer.start()
    wrong = []
    for _ in range(ROUNDS):
        barrier.wait(30)
        barrier.wait(30)  # both have saved
        wrong.append(_unlike(library, store, saved))
    for writer in writers:
        writer.join()
    bad = [w for w in wrong if w]
    return Outcome.judged(f"{len(bad)} of {ROUNDS} times unreadable or mixed", not bad, bad[0] if bad else "")


def _six_tasks(seed: int, library: type[Library], place: Place) -> Library:
    folders = place.written(_samples(seed, 6), f"of{seed}t")
    return library.built({f"t{i}": folder for i, folder in enumerate(folders.values())}, columns=ALL_DIRECTIONS)


def _write(made: Library, store: Path, barrier) -> None:  # type: ignore[no-untyped-def]
    for _ in range(ROUNDS):
        barrier.wait(30)
        try:
            made.save(store)
        finally:
            barrier.wait(30)


def _unlike(library: type[Library], store: Path, saved: list[Library]) -> str:
    """What is wrong with the folder; empty if it is wholly what one of them saved."""
    try:
        found = library.loaded(store)
        read = {task: found.read(task) for task in found.tasks()}
    except Exception as error:
        return first_line(error)
    whole = any(
        read.keys() == set(made.tasks()) and all(_same(read[t], made.read(t)) for t in made.tasks()) for made in saved
    )
    return "" if whole else "a mixture of both"


def _removed(library: type[Library], place: Place) -> Outcome:
    store, samples = place.folder / "store", _samples(0)
    made = library.built(place.written(samples), columns=ALL_DIRECTIONS)
    made.save(store)
    before = _bytes(store)
    made.remove("t1")
    made.save(store)
    back = "t1" in library.loaded(store).tasks()
    kept: Mapping[str, Sample] = {"t0": samples[0], "t2": samples[2]}
    same = worst_error(library.loaded(store), kept) <= max(1e-5, 1.01 * worst_error(made, kept))
    cell = "comes back" if back else f"gone, its files {'too' if _bytes(store) < before else 'not'}"
    return Outcome.judged(cell, not back and same and _bytes(store) < before)


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


PROBES = [
    Probe(9, "../../evil", partial(_names, ("../../evil",))),
    Probe(9, "org/a", partial(_names, ("org/a",))),
    Probe(9, "a/b beside a_b", partial(_names, ("a/b", "a_b"))),
    Probe(9, "two writers at once", _two_writers),
    Probe(9, "a removed task, read again", _removed),
]
