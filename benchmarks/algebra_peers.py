"""lorashare 0.1.3 and vlora-dev 1.0.0 behind the benchmark's few questions; absent where not installed.

Both take at least two adapters. vlora works on flattened factors, so "equal size" means equal bytes: `k` components of
length N R + D R instead of K columns.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.algebra_samples import Sample, write_folder

HAS_VLORA = importlib.util.find_spec("vlora") is not None
HAS_LORASHARE = importlib.util.find_spec("lorashare") is not None
COLUMNS = 64
COLUMNS_BY_DEFAULT = 32
"""lorashare's own, as its signature says."""
COMPONENTS = 8


@dataclass(frozen=True)
class Way:
    """One way of adding. `ready`: makes of a sample what `add` takes, off the clock. tries: how many are timed."""

    name: str
    ready: Callable[[Sample, str], Any]
    add: Callable[[Any, str], object]
    read: Callable[[str], Sample]
    nbytes: Callable[[], int]
    tries: int = 9
    prefix: str = "x"


def ways(samples: list[Sample], equal_nbytes: int) -> Iterator[Way]:
    """The peers, built from `samples` and one more adapter away from them: at several sizes, as vlora's cost and error
    depend on the number of its components. equal_nbytes: what ours takes."""
    warnings.simplefilter("ignore")
    if HAS_VLORA:
        same = components_of_bytes(samples, equal_nbytes)
        sizes = {"its default": None, "8 components": 8, "equal bytes": same, "every component": len(samples) + 1}
        for said, k in sizes.items():
            made = _vlora(samples, k)
            name = f"vlora incremental, {said} ({made.num_components})"
            yield _vlora_way(name, made, made.absorb_incremental, tries=3)
        made = _vlora(samples, 8)
        yield _vlora_way("vlora absorb (8)", made, made.absorb, tries=1)
    if HAS_LORASHARE:
        sizes = {"its default": COLUMNS_BY_DEFAULT, "equal bytes": columns_of_bytes(samples, equal_nbytes)}
        for said, k in sizes.items():
            yield from _lorashare_ways(samples, said, k)


def _lorashare_ways(samples: list[Sample], said: str, k: int) -> Iterator[Way]:
    """It adds either by projecting on the columns it has, whatever that loses, or by computing everything anew."""
    with tempfile.TemporaryDirectory() as folder:
        made = _lorashare(samples, k, folder)
        for how, chosen in {"project": {"variance_threshold": 0.0}, "recompute": {"force_recompute": True}}.items():
            yield Way(
                f"lorashare {how}, {said} ({k})",
                lambda sample, task: str(write_folder(sample, Path(folder) / task)),
                lambda path, task, chosen=chosen: made.add_adapter(path, task, **chosen),
                lambda task: from_state(made.reconstruct(task)),
                lambda: _bytes([made.components, *made.all_loadings.values()]),
                9 if how == "project" else 1,
                how,
            )


def _vlora_way(name: str, made: Any, add: Callable[[Any, str], object], tries: int = 9) -> Way:
    def nbytes() -> int:
        tables = [made.components_a, made.components_b, made.means_a, made.means_b]
        return _bytes(tables + [t for p in made.tasks.values() for t in (p.loadings_a, p.loadings_b)])

    return Way(
        name, lambda sample, _: _weights(sample), add, lambda t: weights_sample(made.reconstruct(t)), nbytes, tries
    )


def components_of_bytes(samples: list[Sample], nbytes: int) -> int:
    """How many of vlora's components (with its means) take as many bytes, in float32."""
    side = sum(B.size + A.size for B, A in samples[0].values())
    return max(1, (nbytes // 4 - side) // (side + 2 * len(samples[0]) * len(samples)))


def columns_of_bytes(samples: list[Sample], nbytes: int) -> int:
    """How many of lorashare's columns a side, with all coefficients, take as many bytes, in float32."""
    each = sum(len(B) + A.shape[1] + 2 * B.shape[1] * len(samples) for B, A in samples[0].values())
    return max(1, nbytes // 4 // each)


def large_ways(folders: list[str]) -> Iterator[Way]:
    """The same for adapters that are read from folders. lorashare is left out, as in BUILDS."""
    warnings.simplefilter("ignore")
    if HAS_VLORA:
        made = _vlora_streaming(folders)
        yield _vlora_way(f"vlora incremental ({COMPONENTS})", made, made.absorb_incremental, tries=3)


def drifting(samples: list[Sample], more: list[Sample]) -> dict[str, tuple[float, Callable[[str], Sample], int]]:
    """By method: CPU seconds an adapter, a reader of t0, t1, ... and the bytes, after `more` was added one by one."""
    warnings.simplefilter("ignore")
    found: dict[str, tuple[float, Callable[[str], Sample], int]] = {}
    names = [f"t{len(samples) + i}" for i in range(len(more))]
    if HAS_VLORA:
        made = _vlora(samples, COMPONENTS)
        each = [
            _cpu(lambda s=s, n=n: made.absorb_incremental(_weights(s), n)) for s, n in zip(more, names, strict=True)
        ]
        way = _vlora_way("vlora incremental", made, made.absorb_incremental)
        found[way.name] = sum(each) / len(each), way.read, way.nbytes()
    if HAS_LORASHARE:
        with tempfile.TemporaryDirectory() as folder:
            other = _lorashare(samples, COLUMNS, folder)
            paths = {n: str(write_folder(s, Path(folder) / n)) for n, s in zip(names, more, strict=True)}
            each = [_cpu(lambda n=n, p=p: other.add_adapter(p, n)) for n, p in paths.items()]
        tables = [other.components, *other.all_loadings.values()]
        found["lorashare"] = sum(each) / len(each), lambda task: from_state(other.reconstruct(task)), _bytes(tables)
    return found


def _bytes(tables: list) -> int:  # type: ignore[type-arg]
    return sum(t.numel() * t.element_size() for table in tables for t in table.values())


def equal_bytes(samples: list[Sample], columns: int) -> dict[str, Callable[[str], Sample]]:
    """Readers by method, each of about the bytes of `columns` columns a side with all coefficients."""
    warnings.simplefilter("ignore")
    found: dict[str, Callable[[str], Sample]] = {}
    B, A = next(iter(samples[0].values()))
    if HAS_VLORA:
        made = _vlora(samples, components_of_equal_bytes(B, A, len(samples), columns))
        found["vlora"] = lambda task: weights_sample(made.reconstruct(task))
    if HAS_LORASHARE:
        with tempfile.TemporaryDirectory() as folder:
            other = _lorashare(samples, columns, folder)
        found["lorashare"] = lambda task: from_state(other.reconstruct(task))
    return found


def components_of_equal_bytes(B: np.ndarray, A: np.ndarray, tasks: int, columns: int) -> int:
    """How many of vlora's components (with its mean) take the bytes of `columns` columns a side for so many tasks."""
    (N, R), D = B.shape, A.shape[1]
    return max(1, (columns * (N + D + 2 * R * tasks) - (N + D) * R) // ((N + D) * R + 2 * tasks))


def _build_vlora(folders: list[str]) -> Callable[[str], Sample]:
    made = _vlora_streaming(folders)
    return lambda task: weights_sample(made.reconstruct(task))


def _vlora_streaming(folders: list[str]):  # type: ignore[no-untyped-def]
    from vlora import SharedSubspace

    names = [Path(f).name for f in folders]
    return SharedSubspace.from_adapters_streaming(folders, task_ids=names, num_components=COMPONENTS)


BUILDS = {"vlora streaming": _build_vlora} if HAS_VLORA else {}
"""lorashare is left out: it took 104 CPU seconds for 8 adapters of an eighth of L."""


def _vlora(samples: list[Sample], k: int | None) -> Any:
    """k: at most as many components; None: its own choice. It takes one more than there are when one is added."""
    from vlora import SharedSubspace

    names = [f"t{i}" for i in range(len(samples))]
    made = SharedSubspace.from_adapters([_weights(s) for s in samples], names, num_components=k)
    made.num_components = k or made.num_components
    return made


def _weights(sample: Sample):  # type: ignore[no-untyped-def]
    from vlora import LoRAWeights

    rank = next(iter(sample.values()))[0].shape[1]
    lora_a = {m: torch.from_numpy(a.copy()) for m, (_, a) in sample.items()}
    lora_b = {m: torch.from_numpy(b.copy()) for m, (b, _) in sample.items()}
    return LoRAWeights(list(sample), lora_a, lora_b, rank)


def weights_sample(weights) -> Sample:  # type: ignore[no-untyped-def]
    return {m: (weights.lora_b[m].numpy(), weights.lora_a[m].numpy()) for m in weights.layer_names}


def _lorashare(samples: list[Sample], columns: int, folder: str):  # type: ignore[no-untyped-def]
    from lorashare import SHAREModel

    paths = {f"t{i}": str(write_folder(s, Path(folder) / f"t{i}")) for i, s in enumerate(samples)}
    return SHAREModel.from_adapters(paths, num_components=columns, device="cpu")


def from_state(state: dict[str, torch.Tensor]) -> Sample:
    ends = (".lora_B.weight", ".lora_A.weight")
    modules = {key.removesuffix(ends[0]) for key in state if key.endswith(ends[0])}
    return {
        m.removeprefix("base_model.model."): (state[m + ends[0]].numpy(), state[m + ends[1]].numpy()) for m in modules
    }


def _cpu(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started
