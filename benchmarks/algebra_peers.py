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

import torch

from benchmarks.algebra_samples import Sample, write_folder

HAS_VLORA = importlib.util.find_spec("vlora") is not None
HAS_LORASHARE = importlib.util.find_spec("lorashare") is not None
COLUMNS = 64
COMPONENTS = 8


def add(samples: list[Sample], more: Sample) -> dict[str, float]:
    """CPU seconds to add one adapter to those of `samples`, by method."""
    warnings.simplefilter("ignore")
    found = {}
    if HAS_VLORA:
        made = _vlora(samples, COMPONENTS)
        found["vlora incremental"] = _cpu(lambda: made.absorb_incremental(_weights(more), "x"))
    if HAS_LORASHARE:
        with tempfile.TemporaryDirectory() as folder:
            made = _lorashare(samples, COLUMNS, folder)
            path = str(write_folder(more, Path(folder) / "x"))
            found["lorashare project"] = _cpu(lambda: made.add_adapter(path, "x", variance_threshold=0.0))
    return found


def equal_bytes(samples: list[Sample], columns: int) -> dict[str, Callable[[str], Sample]]:
    """Readers by method, each of about the bytes of `columns` columns a side with all coefficients."""
    warnings.simplefilter("ignore")
    found: dict[str, Callable[[str], Sample]] = {}
    B, A = next(iter(samples[0].values()))
    (N, R), D, T = B.shape, A.shape[1], len(samples)
    if HAS_VLORA:
        k = max(1, (columns * (N + D + 2 * R * T) - (N + D) * R) // ((N + D) * R + 2 * T))
        made = _vlora(samples, k)
        found["vlora"] = lambda task: _sample(made.reconstruct(task))
    if HAS_LORASHARE:
        with tempfile.TemporaryDirectory() as folder:
            other = _lorashare(samples, columns, folder)
        found["lorashare"] = lambda task: _from_state(other.reconstruct(task))
    return found


def _build_vlora(folders: list[str]) -> Callable[[str], Sample]:
    from vlora import SharedSubspace

    names = [Path(f).name for f in folders]
    made = SharedSubspace.from_adapters_streaming(folders, task_ids=names, num_components=COMPONENTS)
    return lambda task: _sample(made.reconstruct(task))


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


def _sample(weights) -> Sample:  # type: ignore[no-untyped-def]
    return {m: (weights.lora_b[m].numpy(), weights.lora_a[m].numpy()) for m in weights.layer_names}


def _lorashare(samples: list[Sample], columns: int, folder: str):  # type: ignore[no-untyped-def]
    from lorashare import SHAREModel

    paths = {f"t{i}": str(write_folder(s, Path(folder) / f"t{i}")) for i, s in enumerate(samples)}
    return SHAREModel.from_adapters(paths, num_components=columns, device="cpu")


def _from_state(state: dict[str, torch.Tensor]) -> Sample:
    ends = (".lora_B.weight", ".lora_A.weight")
    modules = {key.removesuffix(ends[0]) for key in state if key.endswith(ends[0])}
    return {
        m.removeprefix("base_model.model."): (state[m + ends[0]].numpy(), state[m + ends[1]].numpy()) for m in modules
    }


def _cpu(act: Callable[[], object]) -> float:
    started = time.process_time()
    act()
    return time.process_time() - started
