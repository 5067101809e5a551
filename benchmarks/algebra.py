"""Measure share_algo's algebra beside plain incremental SVD and, where importable, lorashare and vlora.

    python -m benchmarks.algebra [SECTION ...] [--json FILE] [--modules 4] [--quick]

add        CPU seconds for one more adapter, by number of tasks (d=768, 24 modules, r=8, saturated basis)
add-large  the same, d=4096, r=16
build      CPU seconds and peak memory of a build from folders, each in a process of its own (d=4096, r=16, T=128)
drift      40 adapters whose directions drift, added to eight: how wrong is the worst task
bounded    CPU seconds of a merge under drift inside a budget of columns, by number of tasks
gap        error of a streamed build over the error of the dense joint optimum, at equal size
plants     mean relative dW error at equal bytes, on adapters with a known structure
bits       the same for other numbers of bits of directions and coefficients
One thread, CPU time: other work on the machine hardly counts. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks import algebra_peers as peers
from benchmarks.algebra_add import add, add_large
from benchmarks.algebra_bits import bits
from benchmarks.algebra_build import build_rows
from benchmarks.algebra_common import adapter, sample_of
from benchmarks.algebra_drift import bounded, drift
from benchmarks.algebra_samples import PLANTS, IncrementalSvd, Sample, relative_error, shared_columns
from share_algo import Subspace, build, compact, merge


def gap(quick: bool) -> list[dict]:
    rows = []
    for size in (8, 16, 32):
        samples = list(shared_columns(12 if quick else 40, 96, 1, 4, 24, 0.3))
        named = {f"t{i}": adapter(s) for i, s in enumerate(samples)}
        streamed = build(named, size=size, tolerance=1e-4).subspace
        ours = [relative_error(s, sample_of(streamed.adapter(t))) for t, s in zip(named, samples, strict=True)]
        best = min(dense_joint(samples, size, start) for start in (None, 1, 2, 3))
        rows.append({"K": size, "ours": float(np.sqrt(np.mean(np.square(ours)))), "optimum": best})
        rows[-1]["ratio"] = rows[-1]["ours"] / best
    return rows


def dense_joint(samples: list[Sample], k: int, start: int | None) -> float:
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
    sections = {"add": add, "add-large": add_large, "build": build_rows, "drift": drift, "bounded": bounded,
                "gap": gap, "plants": plants, "bits": bits}  # fmt: skip
    large = (add_large, build_rows)
    parser.add_argument(
        "sections", nargs="*", default=[], metavar="SECTION", help=f"of {', '.join(sections)}; else all"
    )
    parser.add_argument("--modules", type=int, default=4, help="of the large adapters; 32 is the whole of L")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; shows that it runs")
    given = parser.parse_args()
    if odd := [s for s in given.sections if s not in sections]:
        parser.error(f"no section {odd[0]!r}")
    results = {}
    for name in given.sections or sections:
        run = sections[name]
        results[name] = run(given.modules, given.quick) if run in large else run(given.quick)
        print(table(name, results[name]), flush=True)
    print(json.dumps(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
