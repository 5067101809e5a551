"""What 500 adapters of a wide model take in the store, by where their basis comes from.

    python -m benchmarks.storage [--tasks 500] [--width 4096] [--json FILE]

learned    directions found in the adapters by a streamed build
derived    adapters trained inside 128 columns that everybody derives from a seed: only coefficients are stored
inside     the same, then compacted: 64 directions learned inside the derived ones
Synthetic adapters of rank 16 that lie mostly in 48 shared directions (of the model, or of the derived columns); one
module, as all are alike. Every subspace is really saved, loaded and read. `times smaller` is against the adapters in
the same precision; `error` is the largest of all tasks, of dW, relative, measured. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.algebra_samples import shared_columns  # noqa: E402
from share_algo import Adapter, Basis, Coefficients, Factors, Subspace, build, derived_block, measured, quantise  # noqa: E402

torch.set_num_threads(1)
MODULE = "layer.0.q"
RANK, DERIVED, SIZE, SHARED, NOISE, TOLERANCE = 16, 128, 64, 48, 0.02, 0.05
BYTES_A_NUMBER = {"float32": 4, "bfloat16": 2, "int8": 1}
Adapters = Callable[[], Iterator[Adapter]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [row for way in WAYS for row in _measure(way, options.tasks, options.width)]
    Console().print(_table(rows, options))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def learned(tasks: int, width: int) -> tuple[Subspace, Adapters]:
    def adapters() -> Iterator[Adapter]:
        for sample in shared_columns(tasks, width, 1, RANK, SHARED, NOISE):
            yield Adapter({MODULE: Factors(*map(torch.from_numpy, sample[MODULE]))})

    return _built(adapters, Subspace.empty(), tasks, SIZE), adapters


def derived(tasks: int, width: int) -> tuple[Subspace, Adapters]:
    start = Subspace(Basis((derived_block({MODULE: (width, width)}, DERIVED, seed=0),)))

    def adapters() -> Iterator[Adapter]:
        for sample in shared_columns(tasks, DERIVED, 1, RANK, SHARED, NOISE):
            B, A = map(torch.from_numpy, sample[MODULE])
            yield Adapter({MODULE: Coefficients(B, A.T.contiguous()).read(start.basis[MODULE])})

    return _built(adapters, start, tasks, None), adapters


def inside(tasks: int, width: int) -> tuple[Subspace, Adapters]:
    whole, adapters = derived(tasks, width)
    return _built(adapters, whole.but(tasks={}, certificates={}), tasks, SIZE), adapters


WAYS = (learned, derived, inside)


def _built(adapters: Adapters, start: Subspace, tasks: int, size: int | None) -> Subspace:
    waiting = adapters()
    each = {f"t{i}": waiting.__next__ for i in range(tasks)}
    return build(each, start=start, size=size, tolerance=TOLERANCE, measure=False, progress=True).subspace


def _measure(way: Callable[[int, int], tuple[Subspace, Adapters]], tasks: int, width: int) -> list[dict]:
    subspace, adapters = way(tasks, width)
    rows = []
    for form in BYTES_A_NUMBER:
        kept = subspace if form == "float32" else quantise(subspace, form).subspace
        with tempfile.TemporaryDirectory() as folder:
            kept.save(Path(folder))
            on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
            kept = Subspace.load(Path(folder))
        lora = BYTES_A_NUMBER[form] * tasks * RANK * 2 * width
        everything, own = kept.nbytes(), kept.nbytes(coefficients_only=True)
        rows.append({"basis": way.__name__, "form": form, "lora": lora, "coefficients": own, "everything": everything,
                     "files": on_disk, "error": _worst(kept, adapters)})  # fmt: skip
    return rows


def _worst(kept: Subspace, adapters: Adapters) -> float:
    each = track(enumerate(adapters()), "measuring", total=len(kept.tasks), transient=True)
    return max(measured(kept, f"t{i}", one).certificates[f"t{i}"].relative_error for i, one in each)


def _table(rows: list[dict], options: argparse.Namespace) -> Table:
    shown = Table(title=f"{options.tasks} adapters, d = {options.width}, r = {RANK}, one module", title_justify="left")
    for name in ("basis", "form", "adapters", "coefficients", "times smaller", "with basis", "times smaller",
                 "files", "error"):  # fmt: skip
        shown.add_column(name, justify="left" if name in ("basis", "form") else "right")
    for r in rows:
        ratios = [f"{r['lora'] / r[key]:.1f}" for key in ("coefficients", "everything")]
        sizes = [f"{r[key]:,}" for key in ("lora", "coefficients", "everything", "files")]
        shown.add_row(r["basis"], r["form"], *sizes[:2], ratios[0], sizes[2], ratios[1], sizes[3], f"{r['error']:.3f}")
    return shown


if __name__ == "__main__":
    main()
