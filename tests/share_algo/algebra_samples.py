"""Adapters for tests, and oracles that share no code with share_algo: dense float64 numpy matrices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from share_algo import Adapter, Factors, Subspace, merge

SHAPES = {"encoder.q": (14, 10), "encoder.v": (9, 16)}
FULL = 1e-5
"""Tolerance of a merge that keeps everything."""

torch.set_num_threads(1)


def adapter(seed: int, rank: int = 3, shapes: Mapping[str, tuple[int, int]] = SHAPES, head: bool = False) -> Adapter:
    """Random factors, another scale for each module."""
    g = torch.Generator().manual_seed(seed)
    factors = {
        m: Factors(torch.randn(N, rank, generator=g) * (1 + i), torch.randn(rank, D, generator=g))
        for i, (m, (N, D)) in enumerate(shapes.items())
    }
    return Adapter(factors, {"score.weight": torch.randn(2, 5, generator=g)} if head else {})


def related(seed: int, tasks: int, shared: int, noise: float, shape: tuple[int, int] = (24, 20)) -> list[Adapter]:
    """Adapters of rank 3 whose columns mostly lie in `shared` common directions a side."""
    g = torch.Generator().manual_seed(seed)
    (N, D), R = shape, 3
    left, right = torch.randn(N, shared, generator=g), torch.randn(D, shared, generator=g)
    made = []
    for _ in range(tasks):
        B = left @ torch.randn(shared, R, generator=g) + noise * torch.randn(N, R, generator=g)
        A = (right @ torch.randn(shared, R, generator=g) + noise * torch.randn(D, R, generator=g)).T
        made.append(Adapter({"m": Factors(B * float(torch.rand(1, generator=g) + 0.1), A)}))
    return made


def subspace(adapters: list[Adapter], tolerance: float = FULL) -> Subspace:
    """The adapters merged one after another as t0, t1, ..."""
    made = Subspace.empty()
    for number, one in enumerate(adapters):
        made = merge(made, f"t{number}", one, tolerance=tolerance).subspace
    return made


def dense(one: Adapter) -> dict[str, np.ndarray]:
    return {m: f.B_NR.double().numpy() @ f.A_RD.double().numpy() for m, f in one.factors.items()}


def relative_error(true: Adapter | dict, kept: Adapter | dict) -> float:
    """Over all modules together, by dense matrices."""
    true, kept = (x if isinstance(x, dict) else dense(x) for x in (true, kept))
    assert true.keys() == kept.keys()
    lost = sum(np.linalg.norm(true[m] - kept[m]) ** 2 for m in true)
    return float(np.sqrt(lost / sum(np.linalg.norm(m) ** 2 for m in true.values())))


def bits(made: Subspace) -> dict[str, bytes]:
    """Every number of every task, as read, and of the basis."""
    found = {}
    for task in made.tasks:
        for m, f in made.adapter(task).factors.items():
            found[f"{task}/{m}"] = f.B_NR.contiguous().numpy().tobytes() + f.A_RD.contiguous().numpy().tobytes()
        for name, tensor in made.tasks[task].head.items():
            found[f"{task}/head/{name}"] = tensor.numpy().tobytes()
    for m in made.basis:
        found[f"basis/{m}"] = b"".join(
            t.contiguous().numpy().tobytes() for t in (made.basis[m].out_NK, made.basis[m].in_DL)
        )
    return found


def orthonormality(made: Subspace) -> float:
    """Largest deviation of U^T U and V^T V from the identity."""
    worst = 0.0
    for m in made.basis:
        for side in (made.basis[m].out_NK, made.basis[m].in_DL):
            wide = side.double().numpy()
            worst = max(worst, np.abs(wide.T @ wide - np.eye(wide.shape[1])).max(initial=0.0))
    return float(worst)


def projector(made: Subspace, module: str) -> tuple[np.ndarray, np.ndarray]:
    columns = made.basis[module]
    U, V = columns.out_NK.double().numpy(), columns.in_DL.double().numpy()
    return U @ U.T, V @ V.T


def peft_folder(folder: Path, tensors: Mapping[str, torch.Tensor], **config: object) -> Path:
    """A LoRA folder written by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{k}": v for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}))
    return folder


seeds = st.integers(0, 2**31)
ranks = st.integers(1, 6)
