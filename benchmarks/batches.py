"""How fast a backlog becomes versions: merged together, and one update a version, in turn, in one run.

The backlog is journaled first, with nobody there to merge it. Both sides are the coordinator's own writer with its
database and blobs; they differ in how many updates a version may hold. "of in memory" is beside what no batch could
pass: the same merges of the same blobs, with nothing stored.

python -m benchmarks.batches [--updates 256] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import struct
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.receipts_samples import blob_of, header_of, small_spec
from coordinator.batch import BATCH_MAX
from coordinator.history import History
from coordinator.home import open_home
from coordinator.integrate import Integrator
from coordinator.members import Members
from coordinator.receive import submission
from coordinator.transition import State, step

TASKS = 64
IN_MEMORY = 0


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    sizes = (1, 4, BATCH_MAX)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        _journal(folder / "backlog", options.updates)
        rounds = [
            {n: _merged(folder, n) for n in sizes} | {IN_MEMORY: _in_memory(folder)} for _ in range(options.rounds)
        ]
    title = f"backlog of {options.updates}, median of {options.rounds} rounds"
    table = Table("updates a version", "merges/s", "times one by one", "of in memory", title=title)
    for n in sizes:
        speed, times, share = (median(r[n] / by for r, by in pairs) for pairs in _beside(rounds))
        table.add_row(f"at most {n}", f"{speed:,.0f}", f"{times:.2f}", f"{share:.2f}")
    Console().print(table)


def _round(folder: Path, sizes: tuple[int, ...]) -> dict[int, float]:
    """Merges a second by updates a version."""
    return {**{n: _merged(folder, n) for n in sizes}, IN_MEMORY: _in_memory(folder)}


def _beside(rounds: list[dict[int, float]]) -> list[list[tuple[dict[int, float], float]]]:
    """Each round with what its speeds are divided by: nothing, one by one, in memory."""
    return [[(r, 1.0) for r in rounds], [(r, r[1]) for r in rounds], [(r, r[IN_MEMORY]) for r in rounds]]


def _journal(folder: Path, updates: int) -> None:
    """Updates of many tasks, each of a worker of its own, each with a receipt, all waiting."""
    with open_home(folder, small_spec()) as home:
        history, members = History.of(home.spec, home.engine, home.blobs), Members(home.engine)
        history.catalog.ensure_root(home.spec.federation_id, time.time())
        blob = blob_of(home.spec)
        for n in range(updates):
            worker, task = f"worker-{n}", f"task-{n % TASKS}"
            members.join(worker, task, time.time())
            blob = blob[:-4] + struct.pack("<f", n)  # no two are equal
            home.blobs.put(blob)
            history.journal.append(submission(header_of(home.spec, worker, task, blob)), time.time())


def _merged(folder: Path, batch_max: int) -> float:
    """Merges a second until nothing waits."""
    copy = folder / "copy"
    shutil.copytree(folder / "backlog", copy)
    with open_home(copy) as home:
        history = History.of(home.spec, home.engine, home.blobs)
        updates = history.journal.newest_position()
        writer = Integrator(home.spec, home.engine, history, lambda announcement: None, batch_max=batch_max)
        began = time.perf_counter()
        writer.start()
        while writer.announcement.consumed < updates:
            time.sleep(0.002)
        seconds = time.perf_counter() - began
        writer.stop()
        versions = [version for version in history.catalog.every() if version.version]
        assert sum(len(version.records) for version in versions) == updates
        assert len(versions) >= updates / batch_max
    shutil.rmtree(copy)
    return updates / seconds


def _in_memory(folder: Path) -> float:
    with open_home(folder / "backlog") as home:
        history, state = History.of(home.spec, home.engine, home.blobs), State()
        positions = [position for position, _ in history.journal.every()]
        began = time.perf_counter()
        for position in positions:
            state, _ = step(state, [history.arrived(position, 0)], home.spec)
        return len(positions) / (time.perf_counter() - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on which disk; else where temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
