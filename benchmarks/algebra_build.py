"""The section `build`: CPU seconds and peak memory of a build from folders, each method in a process of its own."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import algebra_peers as peers
from benchmarks.algebra_common import TOLERANCE, K, L, sample_of
from benchmarks.algebra_samples import IncrementalSvd, Sample, relative_error, shared_columns, write_folder
from share_algo import Adapter, build


def build_rows(modules: int, quick: bool) -> list[dict]:
    tasks = 16 if quick else 128
    methods = {"ours": _build_ours, "ours, measured": _build_measured, "ref": _build_ref, **peers.BUILDS}
    with tempfile.TemporaryDirectory() as folder:
        for i, sample in enumerate(shared_columns(tasks, modules=modules, **L)):
            write_folder(sample, Path(folder) / f"t{i}")
        rows = [{"method": name, **alone(method, folder, tasks)} for name, method in methods.items()]
    ref = next(row for row in rows if row["method"] == "ref")
    return [{**row, "cpu_s / ref": row["cpu_s"] / ref["cpu_s"]} for row in rows]


def alone(method: Callable, folder: str, tasks: int) -> dict:
    """Run in a fresh process: CPU seconds, peak memory above the imports and LAPACK's code, error of some tasks."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (method, folder, tasks))


def _timed(method: Callable, folder: str, tasks: int) -> dict:
    _first_use()
    Path("/proc/self/clear_refs").write_text("5")  # peak memory starts anew; ru_maxrss would remember the parent
    before = _peak_MB()
    started = time.process_time()
    read = method([str(Path(folder) / f"t{i}") for i in range(tasks)])
    seconds = time.process_time() - started
    peak = _peak_MB()
    errors = [relative_error(sample_of(Adapter.load(Path(folder) / f"t{i}")), read(f"t{i}")) for i in (0, tasks - 1)]
    return {"cpu_s": seconds, "peak_MB": peak - before, "peak_with_imports_MB": peak, "error": max(errors)}


def _first_use() -> None:
    """Bring LAPACK's code into memory, some 17 MB that whoever decomposes anything with torch has in common."""
    torch.linalg.qr(torch.linalg.svd(torch.linalg.eigh(torch.eye(64, dtype=torch.float64)).eigenvectors).U)
    torch.linalg.svd(torch.linalg.qr(torch.eye(64)).Q)


def _peak_MB() -> float:
    """Linux: the largest resident size since it was last reset."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _build_ours(folders: list[str], measure: bool = False) -> Callable[[str], Sample]:
    made = build(folders, size=K, tolerance=TOLERANCE / 5, measure=measure).subspace
    return lambda task: sample_of(made.adapter(task))


def _build_measured(folders: list[str]) -> Callable[[str], Sample]:
    return _build_ours(folders, measure=True)


def _build_ref(folders: list[str]) -> Callable[[str], Sample]:
    made = IncrementalSvd(K)
    for folder in folders:
        made.add(Path(folder).name, sample_of(Adapter.load(folder)))
    return made.read
