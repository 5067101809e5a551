"""Family 1: one bad upload is refused by name, and every other task stays bitwise what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.algebra_samples import Sample, relative_error, shared_columns, write_folder
from benchmarks.family_probes.probe import Library, Outcome, Place, Probe, first_line

FIRST, LAST = "layer.0.q", "layer.1.q"
"""When the bad part is in the last module, the first has been worked on already."""


def _with_tensor(module: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        name = f"base_model.model.{module}.lora_B.weight"
        tensors[name] = change(tensors[name])
        save_file(tensors, folder / "adapter_model.safetensors")

    return spoil


def _one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(B: np.ndarray) -> np.ndarray:
        B[3, 1] = value
        return B

    return change


def _with_config(**said: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **said}))

    return spoil


def _upload(spoil: Callable[[Path], None], names: str, library: type[Library], place: Place) -> Outcome:
    *good, last = shared_columns(5, 96, 2, 8, 64, 0.02)  # the last brings directions that the others lack
    folders = place.written(good)
    bad = write_folder(last, place.folder / "adapters" / "bad")
    spoil(bad)
    cells, said, holds = [], [], True
    for way in library.ways:
        made = library.built(folders)
        before = {task: made.read(task) for task in made.tasks()}
        refused = _refusal(made, bad, way, place.folder)
        change = _change(before, made)
        named = names.lower() in refused.lower()
        holds &= named and not change
        cells.append(f"{way}: {_what(refused, named)}, others {change or 'unchanged'}")
        said += [refused] if refused else []
    return Outcome.judged("; ".join(cells), holds, " | ".join(said))


def _what(refused: str, named: bool) -> str:
    return ("refused" if named else "refused without saying where") if refused else "accepted"


def _refusal(made: Library, bad: Path, way: str, hide: Path) -> str:
    try:
        made.add("bad", bad, way)
    except Exception as error:
        return first_line(error, hide)
    return ""


def _change(before: dict[str, Sample], made: Library) -> str:
    """What became of the tasks that were there; empty where each is bitwise what it was."""
    worst, bitwise = 0.0, True
    for task, old in before.items():
        new = made.read(task)
        if not all(np.isfinite(part).all() for pair in new.values() for part in pair):
            return "NaN"
        worst = max(worst, relative_error(old, new))
        bitwise &= all(np.array_equal(x, y) for m in old for x, y in zip(old[m], new[m], strict=True))
    return "" if bitwise else f"changed by {worst:.2g}"


CASES = {
    "NaN in the first module": (_with_tensor(FIRST, _one(np.nan)), FIRST),
    "NaN in the last module": (_with_tensor(LAST, _one(np.nan)), LAST),
    "Inf": (_with_tensor(LAST, _one(np.inf)), LAST),
    "wrong shape": (_with_tensor(LAST, lambda B: B[:-1].copy()), LAST),
    "wrong base model": (_with_config(base_model_name_or_path="another-base"), "another-base"),
    "wrong rank": (_with_config(r=3, lora_alpha=3), "rank"),
}
PROBES = [Probe(1, name, partial(_upload, *case)) for name, case in CASES.items()]
