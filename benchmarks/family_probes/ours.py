"""share_algo behind the probes' interface."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.algebra_common import sample_of
from benchmarks.algebra_samples import Sample
from share_algo import Adapter, Subspace, average, build, combine, compact, merge, remove
from share_algo.append import DEFAULT_TOLERANCE


def _average(folders: list[Path]) -> Sample:
    made = average(Subspace.empty(), "mean", [Adapter.load(f) for f in folders]).subspace
    return sample_of(made.adapter("mean"))


def _combine(folders: list[Path]) -> Sample:
    made = build({f"t{i}": f for i, f in enumerate(folders)}).subspace
    entry = combine(list(made.tasks.values()), [1 / len(folders)] * len(folders))
    return sample_of(entry.adapter(made.basis))


class ShareAlgo:
    name, package = "ours", "fedshare"
    ways = ("merge",)

    def __init__(self, made: Subspace, tolerance: float = DEFAULT_TOLERANCE):
        self.made, self._tolerance = made, tolerance

    @classmethod
    def built(cls, folders: Mapping[str, Path], *, columns: int | None = None, error: float | None = None) -> ShareAlgo:
        tolerance = error or DEFAULT_TOLERANCE
        made = build(dict(folders), tolerance=tolerance).subspace
        return cls(made if columns is None else compact(made, size=columns).subspace, tolerance)

    @classmethod
    def streamed(cls, folders: Mapping[str, Path], columns: int) -> ShareAlgo:
        return cls(build(dict(folders), size=columns, tolerance=0.01).subspace)

    @classmethod
    def loaded(cls, folder: Path) -> ShareAlgo:
        return cls(Subspace.load(folder))

    @staticmethod
    def merges() -> dict[str, Callable[[list[Path]], Sample]]:
        return {"average": _average, "combine": _combine}

    def save(self, folder: Path) -> None:
        self.made.save(folder)

    def add(self, task: str, folder: Path, way: str = "merge") -> None:
        self.made = merge(self.made, task, Adapter.load(folder), tolerance=self._tolerance).subspace

    def remove(self, task: str) -> None:
        self.made = remove(self.made, task).subspace

    def tasks(self) -> list[str]:
        return list(self.made.tasks)

    def read(self, task: str) -> Sample:
        return sample_of(self.made.adapter(task))

    def claim(self, task: str, folder: Path) -> tuple[float, bool]:
        found = self.made.certificates[task]
        return found.relative_error, found.is_bound

    def model(self, task: str, base: Any) -> Any:
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as folder:
            self.export(task, Path(folder))
            return PeftModel.from_pretrained(base, folder).eval()

    def export(self, task: str, folder: Path) -> None:
        self.made.adapter(task).save(folder)
