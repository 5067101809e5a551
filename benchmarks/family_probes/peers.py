"""lorashare and vlora behind the probes' interface: their public calls, with their defaults unless told a size."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.algebra_peers import components_of_equal_bytes, from_state, weights_sample
from benchmarks.algebra_samples import Sample


class LoraShare:
    name, package = "lorashare", "lorashare"
    ways = ("add_adapter",)

    def __init__(self, made: Any):
        self.made = made
        self._claims: dict[str, float] = {}

    @classmethod
    def built(cls, folders: Mapping[str, Path], *, columns: int | None = None, error: float | None = None) -> LoraShare:
        from lorashare import SHAREModel

        chosen: dict[str, Any] = {} if columns is None else {"num_components": columns}
        if error is not None:
            chosen = {"num_components": "auto", "variance_threshold": 1 - error**2}
        return cls(SHAREModel.from_adapters(_texts(folders), **chosen))

    @classmethod
    def streamed(cls, folders: Mapping[str, Path], columns: int) -> LoraShare:
        from lorashare import SHAREModel

        return cls(SHAREModel.from_adapters(_texts(folders), num_components=columns, chunk_size=10))

    @classmethod
    def loaded(cls, folder: Path) -> LoraShare:
        from lorashare import SHAREModel

        return cls(SHAREModel.from_pretrained(folder))

    @staticmethod
    def merges() -> dict[str, Callable[[list[Path]], Sample]]:
        return {}

    def save(self, folder: Path) -> None:
        self.made.save_pretrained(folder)

    def add(self, task: str, folder: Path, way: str = "add_adapter") -> None:
        said = self.made.add_adapter(str(folder), task)
        if "mean_explained_variance" in said:
            self._claims[task] = said["mean_explained_variance"]

    def remove(self, task: str) -> None:
        self.made.remove_adapter(task)

    def tasks(self) -> list[str]:
        return self.made.adapter_names

    def read(self, task: str) -> Sample:
        return from_state(self.made.reconstruct(task))

    def claim(self, task: str, folder: Path) -> tuple[float, bool]:
        explained = self._claims.get(task, self.made.config.compression_stats["mean_explained_variance"])
        return math.sqrt(max(0.0, 1 - explained)), False

    def model(self, task: str, base: Any) -> Any:
        return self.made.apply(base, task).eval()

    def export(self, task: str, folder: Path) -> None:
        self.made.reconstruct(task, folder)


def _texts(folders: Mapping[str, Path]) -> dict[str, str]:
    return {task: str(folder) for task, folder in folders.items()}


class Vlora:
    name, package = "vlora", "vlora-dev"
    ways = ("absorb", "absorb_incremental")

    def __init__(self, made: Any):
        self.made = made

    @classmethod
    def built(cls, folders: Mapping[str, Path], *, columns: int | None = None, error: float | None = None) -> Vlora:
        from vlora import SharedSubspace, load_adapter

        adapters = [load_adapter(folder) for folder in folders.values()]
        chosen: dict[str, Any] = {}
        if columns is not None:
            B, A = next(iter(weights_sample(adapters[0]).values()))
            chosen = {"num_components": components_of_equal_bytes(B, A, len(adapters), columns)}
        if error is not None:
            chosen = {"adaptive_k": True, "variance_threshold": 1 - error**2}
        return cls(SharedSubspace.from_adapters(adapters, list(folders), **chosen))

    @classmethod
    def streamed(cls, folders: Mapping[str, Path], columns: int) -> Vlora:
        from vlora import SharedSubspace, load_adapter

        B, A = next(iter(weights_sample(load_adapter(next(iter(folders.values())))).values()))
        k = components_of_equal_bytes(B, A, len(folders), columns)
        paths = [str(f) for f in folders.values()]
        return cls(SharedSubspace.from_adapters_streaming(paths, list(folders), num_components=k))

    @classmethod
    def loaded(cls, folder: Path) -> Vlora:
        from vlora import SharedSubspace

        return cls(SharedSubspace.load(folder))

    @staticmethod
    def merges() -> dict[str, Callable[[list[Path]], Sample]]:
        from vlora import load_adapter
        from vlora.merge import MERGE_METHODS

        return {
            name: lambda folders, merge=merge: weights_sample(merge([load_adapter(f) for f in folders]))
            for name, merge in MERGE_METHODS.items()
        }

    def save(self, folder: Path) -> None:
        self.made.save(folder)

    def add(self, task: str, folder: Path, way: str = "absorb") -> None:
        from vlora import load_adapter

        getattr(self.made, way)(load_adapter(folder), task)

    def remove(self, task: str) -> None:
        del self.made.tasks[task]  # it has no call for it

    def tasks(self) -> list[str]:
        return list(self.made.tasks)

    def read(self, task: str) -> Sample:
        return weights_sample(self.made.reconstruct(task))

    def claim(self, task: str, folder: Path) -> tuple[float, bool]:
        from vlora import load_adapter, subspace_coverage

        each = [m["coverage_mean"] for m in subspace_coverage(self.made, load_adapter(folder)).values()]
        return 1 - sum(each) / len(each), False

    def model(self, task: str, base: Any) -> Any:
        from vlora import VLoRAModel

        made = VLoRAModel(base, self.made).eval()
        made.set_task(task)
        return made

    def export(self, task: str, folder: Path) -> None:
        from vlora import extract_adapter

        extract_adapter(self.made, task, folder)


PEERS = tuple(p for p in (LoraShare, Vlora) if importlib.util.find_spec(p.name) is not None)
