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

from benchmarks.receipts import blob_of, coordinator, header_of, small_spec
from coordinator.catalog import Catalog
from coordinator.draft import BlobName, Draft, Kept
from coordinator.history import History
from coordinator.home import open_home
from coordinator.integrate import Integrator
from coordinator.journal import Journal
from coordinator.members import Members
from coordinator.receive import submission
from coordinator.transition import Record
from coordinator.verdicts import Ruling
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Certificate

SHORT = 10


def main() -> None:
    options = _options()
    table = Table("journaled updates", "reading the head, ms", "to the first answer, s", title="median")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for updates in (SHORT, options.updates):
            home = _home(Path(folder) / str(updates), updates)
            head, serving = (median(f(home) for _ in range(options.rounds)) for f in (_head, _serving))
            table.add_row(f"{updates:,}", f"{1000 * head:.1f}", f"{serving:.2f}")
    Console().print(table)


def _home(folder: Path, updates: int) -> Path:
    """So many updates are journaled and merged, each for a task of its own; all are the same function."""
    with open_home(folder, small_spec()) as home:
        catalog, journal = Catalog(home.engine), Journal(home.engine)
        catalog.ensure_root(home.spec.federation_id, time.time())
        Members(home.engine).join("worker", "task", time.time())
        blob = blob_of(home.spec)
        name, head = BlobName(home.blobs.put(blob), len(blob)), catalog.head()
        for n in range(1, updates + 1):
            header = header_of(home.spec, "worker", f"task-{n}", blob)
            journal.append(submission(header), time.time())
            draft = Draft(
                position=n,
                records=(Record(n, header.task, "worker", header.update_id),),
                blocks=(name,) if n == 1 else (),
                entries={header.task: Kept(name, list(header.labels), Certificate(1.0, 0.0))},
                first=(Ruling(n, pb.OUTCOME_MERGED),),
            )
            head = catalog.publish(head, draft, time.time())
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
