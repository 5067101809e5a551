"""Many seeded runs, in several processes, and what came of them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from parts import small_home, small_spec
from rich.progress import track

from .aims import known
from .here import new_loop
from .oracle import check
from .points import Faults
from .runs import run

SHAPES = {"encoder.a": (6, 5)}
"""One module: a run is about disks, not about sizes."""
ESSENTIAL = (
    "coordinator: shelves.Folder.put, before rename *.safetensors",
    "coordinator: shelves.Folder.sync, before fsync blobs",
    "coordinator: journal.Journal.append, before commit",
    "coordinator: journal.Journal.append, inside commit",
    "coordinator: journal.Journal.append, after commit",
    "coordinator: catalog.Catalog.publish, before commit",
    "coordinator: catalog.Catalog.publish, inside commit",
    "coordinator: catalog.Catalog.publish, after commit",
    "coordinator: catalog.Catalog.publish for a rollback, inside commit",
    "coordinator: catalog.Catalog.publish for a forget, inside commit",
    "coordinator: catalog.Catalog.publish for a forget, after commit",
    "coordinator: catalog.Catalog.publish for a compact, before commit",
    "coordinator: catalog.Catalog.publish for a compact, inside commit",
    "coordinator: catalog.Catalog.publish for a compact, after commit",
    "coordinator: catalog.Catalog.publish for a judge, inside commit",
    "coordinator: catalog.Catalog.publish for a judge, after commit",
    "coordinator: catalog.Catalog.settle for a judge, inside commit",
    "coordinator: catalog.Catalog.settle for a collect, inside commit",
    "coordinator: catalog.Catalog.settle for a collect, after commit",
    "coordinator: blobs.Blobs.sweep, inside commit",
    "coordinator: shelves.Folder.delete, before unlink *.safetensors",
    "coordinator: shelves.Folder.delete, after unlink *.safetensors",
    "coordinator: blob_place.editions, inside commit",
    "coordinator: sweep.sweep_if_wanted, inside commit",
    "coordinator: journal.Journal.command, inside commit",
    "coordinator: members.Members.join, inside commit",
    "workers: outbox.Outbox.put, before replace header.json",
    "workers: outbox.Outbox.put, after replace header.json",
    "workers: outbox.Outbox.done, after unlink header.json",
)
AIMED = 1_000_000
"""Runs from this seed on aim at the essential points, each in its turn; those before it at any that is known."""
BATCH = 25
IN_MEMORY = Path("/dev/shm")
SHOWN_MAX = 5


@dataclass
class Campaign:
    """failed: by seed, why."""

    runs: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)
    crashed: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Campaign) -> None:
        self.runs += other.runs
        self.failed |= other.failed
        for name in ("reached", "crashed", "counts"):
            getattr(self, name).update(getattr(other, name))

    def missed(self, reached_min: int = 1) -> list[str]:
        return sorted(p for p, reached in self.reached.items() if reached >= reached_min and not self.crashed[p])

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "missed": self.missed()}


def campaign(seeds: Iterable[int], jobs: int = 1, folder: str | None = None) -> Campaign:
    seeds = list(seeds)
    batches = [(seeds[n : n + BATCH], folder) for n in range(0, len(seeds), BATCH)]
    found = Campaign()
    with suppress(KeyboardInterrupt):  # what was found until then is told
        for part in track(_done(batches, jobs), "crashing", total=len(batches), disable=len(batches) < 2):
            found.add(part)
            if len(found.failed) >= SHOWN_MAX:
                break
    return found


def _done(batches: list[tuple[list[int], str | None]], jobs: int) -> Iterator[Campaign]:
    if jobs == 1 or len(batches) == 1:
        yield from map(_batch, batches)
        return
    deaf = (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(batches)), signal.signal, deaf) as pool:
        yield from pool.imap_unordered(_batch, batches)


def _batch(task: tuple[list[int], str | None]) -> Campaign:
    seeds, where = task
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    parent = where or (str(IN_MEMORY) if os.access(IN_MEMORY, os.W_OK) else None)
    found, faults, loop = Campaign(), Faults(), new_loop()
    try:
        with tempfile.TemporaryDirectory(prefix="crash-", dir=parent) as folder:
            template = small_home(Path(folder) / "template", small_spec("crash", SHAPES))
            for seed in seeds:
                _one(seed, template, Path(folder) / f"{seed}", faults, loop, found)
    finally:
        logging.disable(logging.NOTSET)
        loop.close()
    found.reached, found.crashed = faults.reached, faults.crashed
    return found


def _one(seed: int, template: Path, folder: Path, faults: Faults, loop, found: Campaign) -> None:  # type: ignore[no-untyped-def]
    found.runs += 1
    world = None
    try:
        world = run(seed, template, folder, faults, loop, _target(seed))
        found.counts.update(check(world))
        found.counts.update(world.counts)
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        found.failed[seed] = f"{type(error).__name__}: {error}\n" + "\n".join(lines[-16:])
    finally:
        if world:
            world.close()
        shutil.rmtree(folder, ignore_errors=True)


def _target(seed: int) -> str:
    """Each run aims at one point that is known, beside what chance hits."""
    if seed >= AIMED:
        return ESSENTIAL[(seed - AIMED) % len(ESSENTIAL)]
    return Random(f"target {seed}").choice(known() or ("",))
