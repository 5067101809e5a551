"""Run the walk many times, each with its own seed of crashes, and check that nothing is lost and nothing doubled.

Exit code 1: a run failed (the command that repeats it is printed), or a crash point that one run in a hundred reaches
was never crashed at.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from .aims import POINTS
from .campaign import Campaign, campaign


def main() -> int:
    options = _options()
    began = time.monotonic()
    if options.processes:
        return _storm(options.kills, options.first, options.folder, began)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.runs)
    found = campaign(seeds, jobs=options.jobs, folder=options.folder)
    if options.json:
        print(json.dumps(found.as_dict()))
    else:
        _show(found, time.monotonic() - began)
    for seed, why in found.failed.items():
        print(f"seed {seed} failed: {why}\n  again: python -m tests.crash --seed {seed}", file=sys.stderr)
    if options.write_points:
        POINTS.write_text("".join(f"{point}\n" for point in sorted(found.reached)))
    missed = found.missed(options.runs // 100) if options.seed is None and options.runs >= 2000 else []
    for point in missed:
        print(f"reached, and never crashed at: {point}", file=sys.stderr)
    return int(bool(found.failed or missed))


def _storm(kills: int, seed: int, where: str | None, began: float) -> int:
    from .processes import storm

    with tempfile.TemporaryDirectory(prefix="storm-", dir=where) as folder:
        found = storm(Path(folder), kills, seed)
    print(", ".join(f"{count:,} {what}" for what, count in found.items()))
    print(f"{kills} kills in {time.monotonic() - began:.0f} s: 0 lost, 0 doubled")
    return 0


def _show(found: Campaign, seconds: float) -> None:
    table = Table("crash point", "reached", "crashed", box=None)
    for point, reached in sorted(found.reached.items()):
        table.add_row(point, f"{reached:,}", f"{found.crashed[point]:,}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(", ".join(f"{what} {count:,}" for what, count in sorted(found.counts.items())))
    console.print(
        f"{found.runs:,} runs in {seconds:.0f} s: {len(found.failed)} failed; {sum(found.crashed.values()):,} faults at"
        f" {len(found.reached)} points, {len(found.missed())} points never crashed at"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--folder", help="where homes are made; else in memory where there is /dev/shm")
    parser.add_argument("--processes", action="store_true", help="real processes and real gRPC, killed with SIGKILL")
    parser.add_argument("--kills", type=int, default=300, help="of processes")
    parser.add_argument("--write-points", action="store_true", help="keep the points that were reached as known ones")
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
