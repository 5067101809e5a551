"""Synthetic LoRA adapters with a known structure, and 20 lines of plain incremental SVD to compare with.

Nothing here imports share_algo: the samples are numpy arrays (B, A) by module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Sample = dict[str, tuple[np.ndarray, np.ndarray]]


def columns(rng: np.random.RandomState, rows: int, width: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, width)))[0].astype(np.float32)


def shared_columns(
    tasks: int, d: int, modules: int, r: int, shared: int, noise: float, seed: int = 0, decay: float = 0.0
) -> Iterator[Sample]:
    """Both factors lie in `shared` common directions, but for a relative part `noise`.

    decay: the i-th direction matters i^-decay as much as the first.
    """
    rng = np.random.RandomState(seed)
    weight = (np.arange(1, shared + 1) ** -decay).astype(np.float32)
    bases = {
        f"layer.{m}.q": (columns(rng, d, shared) * weight, columns(rng, d, shared) * weight) for m in range(modules)
    }
    for _ in range(tasks):
        yield {m: (_near(rng, left, r, noise), _near(rng, right, r, noise).T) for m, (left, right) in bases.items()}


def _near(rng: np.random.RandomState, basis: np.ndarray, r: int, noise: float) -> np.ndarray:
    inside = basis @ rng.standard_normal((basis.shape[1], r)).astype(np.float32)
    outside = rng.standard_normal((len(basis), r)).astype(np.float32)
    return inside + np.float32(noise * np.sqrt(basis.shape[1] / len(basis))) * outside


def drifting(tasks: int, d: int, modules: int, r: int, shared: int, speed: float, seed: int = 0) -> Iterator[Sample]:
    """Like `shared_columns`, but the common directions turn a little from task to task: `speed` is the sine a step."""
    rng = np.random.RandomState(seed)
    bases = {f"layer.{m}.q": [columns(rng, d, shared), columns(rng, d, shared)] for m in range(modules)}
    for _ in range(tasks):
        for sides in bases.values():
            sides[:] = [np.linalg.qr(side + speed * columns(rng, d, shared))[0] for side in sides]
        yield {m: (_near(rng, left, r, 0.0), _near(rng, right, r, 0.0).T) for m, (left, right) in bases.items()}


def common_start(
    tasks: int, d: int, modules: int, r: int, shared: int, noise: float, seed: int = 0
) -> Iterator[Sample]:
    """Every task started from the same lora_A and moved it a little; out columns are shared."""
    rng = np.random.RandomState(seed)
    start = {f"layer.{m}.q": rng.standard_normal((r, d)).astype(np.float32) for m in range(modules)}
    for sample in shared_columns(tasks, d, modules, r, shared, noise, seed + 1):
        drift = {m: rng.standard_normal((r, d)).astype(np.float32) for m in sample}
        yield {m: (B, start[m] + np.float32(noise) * drift[m]) for m, (B, _) in sample.items()}


def shared_mean(tasks: int, d: int, modules: int, r: int, shared: int, noise: float, seed: int = 0) -> Iterator[Sample]:
    """Factors scatter around one common pair, entry by entry: what flattened principal components are made for."""
    rng = np.random.RandomState(seed)
    mean = next(shared_columns(1, d, modules, r, d, 0.0, seed))
    for _ in range(tasks):
        yield {m: (_scattered(rng, B, noise), _scattered(rng, A, noise)) for m, (B, A) in mean.items()}


def _scattered(rng: np.random.RandomState, mean: np.ndarray, noise: float) -> np.ndarray:
    return mean + np.float32(noise) * rng.standard_normal(mean.shape).astype(np.float32)


PLANTS = {"shared columns": shared_columns, "common-A start": common_start, "shared flattened mean": shared_mean}


def relative_error(true: Sample, kept: Sample) -> float:
    """Of dW over all modules, from R x R Gram matrices of the stacked factors."""
    lost = total = 0.0
    for m, (B, A) in true.items():
        b, a = kept[m]
        left, right = np.hstack([B, -b]).astype(np.float64), np.vstack([A, a]).astype(np.float64)
        lost += np.linalg.norm(np.linalg.qr(left)[1] @ np.linalg.qr(right.T)[1].T) ** 2
        total += np.linalg.norm(np.linalg.qr(B.astype(np.float64))[1] @ np.linalg.qr(A.T.astype(np.float64))[1].T) ** 2
    return float(np.sqrt(lost / total))


def write_folder(sample: Sample, folder: Path) -> Path:
    """A standard PEFT LoRA folder, written without PEFT."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for m, (B, A) in sample.items():
        tensors[f"base_model.model.{m}.lora_A.weight"] = np.ascontiguousarray(A)
        tensors[f"base_model.model.{m}.lora_B.weight"] = np.ascontiguousarray(B)
    r = next(iter(sample.values()))[0].shape[1]
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": r, "lora_alpha": r, "target_modules": ["q"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "synthetic"}))
    return folder


class IncrementalSvd:
    """`ref`: uncentred incremental SVD of each side's columns (Brand 2002); every task's coefficients are rotated."""

    def __init__(self, size: int):
        self.size, self.sides, self.tasks = size, {}, {}

    def add(self, task: str, sample: Sample) -> None:
        self.tasks[task] = {}
        for m, (B, A) in sample.items():
            for side, C in ((f"{m}/out", B), (f"{m}/in", A.T)):
                old = self.sides.get(side)
                U, S = old or (C[:, :0], np.zeros(0, np.float32))
                Q, inner = np.linalg.qr(np.hstack([U * S, C]))
                u, s, _ = np.linalg.svd(inner, full_matrices=False)
                new = Q @ u[:, : self.size]
                self.sides[side] = new, s[: self.size]
                turn = new.T @ U
                for coefficients in self.tasks.values():
                    if side in coefficients:
                        coefficients[side] = turn @ coefficients[side]
                self.tasks[task][side] = new.T @ C

    def read(self, task: str) -> Sample:
        own = self.tasks[task]
        modules = {side.rpartition("/")[0] for side in own}
        whole = {side: self.sides[side][0] @ c for side, c in own.items()}
        return {m: (whole[f"{m}/out"], whole[f"{m}/in"].T) for m in modules}

    def nbytes(self) -> int:
        """Of columns and coefficients."""
        own = sum(c.nbytes for coefficients in self.tasks.values() for c in coefficients.values())
        return own + sum(U.nbytes for U, _ in self.sides.values())
