"""From start to serving with a long journal, beside the same with a short one: each with the same subspace at the head.

What is timed is what a coordinator does before it listens: migrate, read the head, find where the merging goes on.
The time of a whole process, from its start to its address, is given beside it; importing torch is most of that.

python -m benchmarks.restart [--updates 10000] [--rounds 5] [--folder DIR]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.receipts import coordinator
from benchmarks.receipts_samples import blob_of, header_of, small_spec
from coordinator.batch import Batch
from coordinator.history import History
from coordinator.home import open_home
from coordinator.integrate import Integrator
from coordinator.members import Members
from coordinator.receive import submission
from coordinator.transition import State
from share_algo import Basis

SHORT = 10


def main() -> None:
    options = _options()
    table = Table("journaled updates", "reading the head, ms", "to the first answer, s", title="median")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for updates in (SHORT, options.updates):
            home = home_with(Path(folder) / str(updates), updates, updates)
            head, serving = (median(f(home) for _ in range(options.rounds)) for f in (_head, _serving))
            table.add_row(f"{updates:,}", f"{1000 * head:.1f}", f"{serving:.2f}")
    Console().print(table)


def home_with(folder: Path, updates: int, tasks: int) -> Path:
    """So many updates, no two equal, are journaled and merged: each made for the version before, into the next one."""
    with open_home(folder, small_spec()) as home:
        history = History.of(home.spec, home.engine, home.blobs)
        catalog, journal = history.catalog, history.journal
        catalog.ensure_root(home.spec.federation_id, time.time())
        Members(home.engine).join("worker", "task", time.time())
        head, basis = catalog.head(), Basis()
        for n in range(updates):
            blob = blob_of(home.spec, basis, 1 + n / updates)
            header = header_of(home.spec, "worker", f"task-{n % tasks}", blob)
            header.base_version = head.version
            home.blobs.put(blob)
            journal.append(submission(header), time.time())
            batch = Batch(history, head, State(basis), ())
            head = catalog.publish(head, batch.draft([journal.at(n + 1)]), time.time())
            basis = batch.state.basis
            history.bases.remember(head, basis)
    return folder


def _head(folder: Path) -> float:
    began = time.perf_counter()
    with open_home(folder) as home:
        history = History.of(home.spec, home.engine, home.blobs)
        Integrator(home.spec, home.engine, history, lambda announcement: None)
        return time.perf_counter() - began


def _serving(folder: Path) -> float:
    began = time.perf_counter()
    with coordinator(folder):
        return time.perf_counter() - began


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on which disk; else where temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
