"""What looking after a home costs when its journal is long: replay, rollback, forget, collect.

Every update is merged into a version of its own, made for the version before, and taught within the columns that the
first one brought: what is timed is reading and writing journal, catalog and blobs, and of merging as little as can be.
Each step is timed from the call to its verdict, over gRPC, with a coordinator in a process of its own.

python -m benchmarks.long_journal [--updates 1000,10000] [--tasks 100] [--folder DIR]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.receipts import coordinator
from benchmarks.restart import home_with
from protos.fedshare.v1 import federation_pb2 as pb
from workers.client import Client

KEPT = 10
"""Versions, after a collection."""


def main() -> None:
    options = _options()
    table = Table("updates", "step", "s", "of an update, ms", "memory then, MB", "what came of it")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for updates in map(int, options.updates.split(",")):
            home = home_with(Path(folder) / str(updates), updates, options.tasks)
            shutil.copytree(home, copy := home.with_name(f"{updates}-copy"))
            for on, steps in ((home, _collect(updates)), (copy, _all(updates))):
                for name, seconds, rss, said in _timed(on, steps):
                    per = f"{1000 * seconds / updates:.2f}"
                    table.add_row(f"{updates:,}", name, f"{seconds:.1f}", per, f"{rss / 1e6:.0f}", said)
    Console(width=160).print(table)


Steps = dict[str, Callable[[Client], str]]


def _collect(updates: int) -> Steps:
    return {f"collect all but {KEPT}, their basis is kept": _order(collect=pb.Collect(keep=KEPT))}


def _all(updates: int) -> Steps:
    """The last collection takes the generation that all updates were made for: each of them is stated anew."""
    return {
        "replay": _replay,
        "rollback over half of them": _order(rollback=pb.Rollback(version=updates // 2)),
        "rollback back again": _order(rollback=pb.Rollback(version=updates)),
        "forget a task": _order(forget=pb.Forget(task="task-1")),
        "forget a task, and erase": _order(forget=pb.Forget(task="task-2", erase=True)),
        "collect all but 1, all stated anew": _order(collect=pb.Collect(keep=1)),
        "forget a task of these": _order(forget=pb.Forget(task="task-3")),
    }


def _order(**command: Any) -> Callable[[Client], str]:
    def give(client: Client) -> str:
        verdict = client.command(pb.CommandRequest(command_id=uuid.uuid4().hex, **command))
        assert verdict.outcome == pb.OUTCOME_DONE, verdict.reason
        return verdict.reason

    return give


def _replay(client: Client) -> str:
    reply = client.replay()
    return f"{reply.versions} versions, {reply.tasks} tasks, {max(reply.task.value, reply.basis.value):.0e} off"


def _timed(home: Path, steps: Steps) -> Iterator[tuple[str, float, int, str]]:
    """(step, seconds, bytes of memory afterwards, what came of it) one after the other."""
    with coordinator(home) as running, Client(running.address, patience_seconds=0) as client:
        for name, step in steps.items():
            began = time.perf_counter()
            said = step(client)
            yield name, time.perf_counter() - began, psutil.Process(running.pid).memory_info().rss, said


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", default="1000,10000")
    parser.add_argument("--tasks", type=int, default=100, help="that the updates are about in turn")
    parser.add_argument("--folder", type=Path, help="on which disk; else where temporary files go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
