"""lorashare 0.1.3 and vlora-dev 1.0.0 behind the benchmark's few questions; absent where not installed.

Both take at least two adapters. vlora works on flattened factors, so "equal size" means equal bytes: `k` components of
length N R + D R instead of K columns.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.algebra_samples import Sample, write_folder

HAS_VLORA = importlib.util.find_spec("vlora") is not None
HAS_LORASHARE = importlib.util.find_spec("lorashare") is not None
COLUMNS = 64
COMPONENTS = 8


def add(samples: list[Sample], more: list[Sample]) -> dict[str, float]:
    """CPU seconds to add one adapter to those of `samples`, by method; of the cheap ones the least of several."""
    warnings.simplefilter("ignore")
    found = {}
    if HAS_VLORA:
        found["vlora incremental"] = _incremental(_vlora(samples, COMPONENTS), more)
        other = _vlora(samples, COMPONENTS)
        found["vlora absorb"] = _cpu(lambda: other.absorb(_weights(more[0]), "x"))
    if HAS_LORASHARE:
        with tempfile.TemporaryDirectory() as folder:
            made = _lorashare(samples, COLUMNS, folder)
            paths = [str(write_folder(s, Path(folder) / f"x{i}")) for i, s in enumerate(more)]
            project = [_cpu(lambda p=p: made.add_adapter(p, variance_threshold=0.0)) for p in paths[1:]]
            found["lorashare project"] = min(project)
            found["lorashare recompute"] = _cpu(lambda: made.add_adapter(paths[0], force_recompute=True))
    return found


def add_large(folders: list[str], more: list[Sample]) -> dict[str, float]:
    """CPU seconds to add one adapter to those in `folders`. lorashare is left out, as in BUILDS."""
    warnings.simplefilter("ignore")
    return {"vlora incremental": _incremental(_vlora_streaming(folders), more)} if HAS_VLORA else {}


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
        tables = [made.components_a, made.components_b, made.means_a, made.means_b]
        tables += [t for p in made.tasks.values() for t in (p.loadings_a, p.loadings_b)]
        found["vlora incremental"] = (
            sum(each) / len(each),
            lambda task: weights_sample(made.reconstruct(task)),
            _bytes(tables),
        )
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


def _incremental(made, more: list[Sample]) -> float:  # type: ignore[no-untyped-def]
    return min(_cpu(lambda s=s, i=i: made.absorb_incremental(_weights(s), f"x{i}")) for i, s in enumerate(more))


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


def _vlora(samples: list[Sample], k: int):  # type: ignore[no-untyped-def]
    from vlora import SharedSubspace

    names = [f"t{i}" for i in range(len(samples))]
    return SharedSubspace.from_adapters([_weights(s) for s in samples], names, num_components=min(k, len(samples)))


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
