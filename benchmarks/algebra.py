"""Measure share_algo's algebra beside plain incremental SVD and, where importable, lorashare and vlora.

    python -m benchmarks.algebra [add build gap plants] [--json FILE] [--build-modules 4] [--quick]

add     CPU seconds for one more adapter, by number of tasks (d=768, 24 modules, r=8, saturated basis)
build   CPU seconds and peak memory of a build from folders, each method in a process of its own (d=4096, r=16, T=128)
gap     error of a streamed build over the error of the dense joint optimum, at equal size
plants  mean relative dW error at equal bytes, on adapters with a known structure
One thread, CPU time: other work on the machine hardly counts. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import algebra_peers as peers  # noqa: E402
from benchmarks.algebra_samples import (  # noqa: E402
    PLANTS,
    IncrementalSvd,
    Sample,
    relative_error,
    shared_columns,
    write_folder,
)  # fmt: skip
from share_algo import Adapter, Factors, Subspace, build, compact, merge  # noqa: E402

torch.set_num_threads(1)
S = {"d": 768, "modules": 24, "r": 8, "shared": 48, "noise": 0.01}
L = {"d": 4096, "r": 16, "shared": 48, "noise": 0.01}
K = 64
TOLERANCE = 0.05
"""Above the noise of the samples: once the shared directions are found, nothing is added."""


def adapter(sample: Sample) -> Adapter:
    return Adapter({m: Factors(torch.from_numpy(B), torch.from_numpy(A)) for m, (B, A) in sample.items()})


def sample_of(one: Adapter) -> Sample:
    return {m: (f.B_NR.numpy(), f.A_RD.numpy()) for m, f in one.factors.items()}


def cpu_seconds(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started


def add(quick: bool) -> list[dict]:
    counts = (8, 32) if quick else (8, 32, 128, 1000, 10_000)
    samples = list(shared_columns(min(130, max(counts)) + 3, **S))
    ours, ref, rows = Subspace.empty(), IncrementalSvd(K), []
    built = 0
    for tasks in counts:
        while built < min(tasks, len(samples) - 3):
            ours = merge(ours, f"t{built}", adapter(samples[built]), tolerance=TOLERANCE).subspace
            ref.add(f"t{built}", samples[built])
            built += 1
        ours = _padded(ours, tasks)
        row = {"tasks": tasks, "K": max(max(w) for w in ours.basis.widths().values())}
        more = [adapter(s) for s in samples[-3:]]
        row["ours"] = min(cpu_seconds(lambda a=a, o=ours: merge(o, "x", a, tolerance=TOLERANCE)) for a in more)
        if tasks <= built:
            row["ref"] = min(cpu_seconds(lambda s=s: ref.add("x", s)) for s in samples[-3:])
            row.update(peers.add(samples[:tasks], samples[-1]) if tasks <= 32 else {})
        row["times ours at the first"] = row["ours"] / rows[0]["ours"] if rows else 1.0
        rows.append(row)
    return rows


def _padded(made: Subspace, tasks: int) -> Subspace:
    """As many tasks as said, by further names for those there are: merging looks at none of them."""
    known = list(made.tasks)
    names = {f"copy{i}": known[i % len(known)] for i in range(tasks - len(known))}
    return made.but(
        tasks=MappingProxyType({**made.tasks, **{n: made.tasks[k] for n, k in names.items()}}),
        certificates=MappingProxyType({**made.certificates, **{n: made.certificates[k] for n, k in names.items()}}),
    )


def build_rows(modules: int, quick: bool) -> list[dict]:
    tasks = 16 if quick else 128
    methods = {"ours": _build_ours, "ours, measured": _build_measured, "ref": _build_ref, **peers.BUILDS}
    with tempfile.TemporaryDirectory() as folder:
        for i, sample in enumerate(shared_columns(tasks, modules=modules, **L)):
            write_folder(sample, Path(folder) / f"t{i}")
        rows = [{"method": name, **_alone(method, folder, tasks)} for name, method in methods.items()]
    ref = next(row for row in rows if row["method"] == "ref")
    return [{**row, "cpu_s / ref": row["cpu_s"] / ref["cpu_s"]} for row in rows]


def _alone(method: Callable, folder: str, tasks: int) -> dict:
    """Run in a fresh process: its CPU seconds, peak memory above the imports, and error of some tasks."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (method, folder, tasks))


def _timed(method: Callable, folder: str, tasks: int) -> dict:
    Path("/proc/self/clear_refs").write_text("5")  # peak memory starts anew; ru_maxrss would remember the parent
    before = _peak_MB()
    started = time.process_time()
    read = method([str(Path(folder) / f"t{i}") for i in range(tasks)])
    seconds = time.process_time() - started
    peak = _peak_MB()
    errors = [relative_error(sample_of(Adapter.load(Path(folder) / f"t{i}")), read(f"t{i}")) for i in (0, tasks - 1)]
    return {"cpu_s": seconds, "peak_MB": peak - before, "peak_with_imports_MB": peak, "error": max(errors)}


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


def gap(quick: bool) -> list[dict]:
    rows = []
    for size in (8, 16, 32):
        samples = list(shared_columns(12 if quick else 40, 96, 1, 4, 24, 0.3))
        named = {f"t{i}": adapter(s) for i, s in enumerate(samples)}
        streamed = build(named, size=size, tolerance=1e-4).subspace
        ours = [relative_error(s, sample_of(streamed.adapter(t))) for t, s in zip(named, samples, strict=True)]
        best = min(_dense_joint(samples, size, start) for start in (None, 1, 2, 3))
        rows.append({"K": size, "ours": float(np.sqrt(np.mean(np.square(ours)))), "optimum": best})
        rows[-1]["ratio"] = rows[-1]["ours"] / best
    return rows


def _dense_joint(samples: list[Sample], k: int, start: int | None) -> float:
    """RMS relative error of the alternating optimum on dense matrices, from HOSVD or random columns."""
    whole = [(B @ A).astype(np.float64) for s in samples for B, A in s.values()]
    whole = [w / np.linalg.norm(w) for w in whole]
    if start is None:
        V = np.linalg.eigh(sum(w.T @ w for w in whole))[1][:, -k:]
    else:
        V = np.linalg.qr(np.random.RandomState(start).standard_normal((whole[0].shape[1], k)))[0]
    for _ in range(100):
        U = np.linalg.eigh(sum((w @ V) @ (w @ V).T for w in whole))[1][:, -k:]
        V = np.linalg.eigh(sum((w.T @ U) @ (w.T @ U).T for w in whole))[1][:, -k:]
    return float(np.sqrt(np.mean([1 - np.linalg.norm(U.T @ w @ V) ** 2 for w in whole])))


def plants(quick: bool) -> list[dict]:
    d, r, tasks, size = (96, 4, 8, 16) if quick else (768, 8, 32, 32)
    rows = []
    for name, plant in PLANTS.items():
        samples = list(plant(tasks, d, 2, r, 24, 0.3 if "mean" in name else 0.04))
        made = Subspace.empty()
        for i, sample in enumerate(samples):
            made = merge(made, f"t{i}", adapter(sample), tolerance=1e-4).subspace
        ref = IncrementalSvd(size)
        for i, sample in enumerate(samples):
            ref.add(f"t{i}", sample)
        joint, share = (compact(made, size=size, policy=p).subspace for p in ("joint", "share"))
        reads = {
            "ours": lambda t, m=joint: sample_of(m.adapter(t)),
            "share policy": lambda t, m=share: sample_of(m.adapter(t)),
            "ref": ref.read,
            **peers.equal_bytes(samples, size),
        }
        row = {"plant": name, "MB": joint.nbytes() / 1e6}
        for method, read in reads.items():
            row[method] = float(np.mean([relative_error(s, read(f"t{i}")) for i, s in enumerate(samples)]))
        rows.append(row)
    return rows


def table(title: str, rows: list[dict]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [heads] + [[_cell(row.get(head, "")) for head in heads] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([title, *lines, ""])


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"add": add, "build": None, "gap": gap, "plants": plants}
    parser.add_argument(
        "sections", nargs="*", default=[], metavar="SECTION", help=f"of {', '.join(sections)}; else all"
    )
    parser.add_argument("--build-modules", type=int, default=4, help="32 is the whole of L")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; shows that it runs")
    given = parser.parse_args()
    if odd := [s for s in given.sections if s not in sections]:
        parser.error(f"no section {odd[0]!r}")
    results = {}
    for name in given.sections or sections:
        run = sections[name]
        results[name] = run(given.quick) if run else build_rows(given.build_modules, given.quick)
        print(table(name, results[name]), flush=True)
    print(json.dumps(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
