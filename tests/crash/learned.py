"""What workers have learned."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from share_algo import Adapter, Factors

from .formulas import Dense


@dataclass(frozen=True)
class Made:
    """What one worker has learned once. began: what the task was in the base version, where that counts."""

    worker: str
    task: str
    adapter: Adapter
    base_version: int = 0
    began: Dense | None = None

    def write(self, file: Path) -> None:
        """Whole or not at all, whenever the process is killed."""
        parts = {
            "B": {name: f.B_NR for name, f in self.adapter.factors.items()},
            "A": {name: f.A_RD for name, f in self.adapter.factors.items()},
            "head": dict(self.adapter.head),
            "began": {name: torch.from_numpy(x) for name, x in (self.began or {}).items()},
        }
        tensors = {f"{kind}:{name}": x.contiguous() for kind, some in parts.items() for name, x in some.items()}
        said = {"worker": self.worker, "task": self.task, "base_version": str(self.base_version)}
        save_file(tensors, part := file.with_suffix(".part"), said)
        os.replace(part, file)

    @staticmethod
    def read(file: Path) -> Made:
        parts: dict[str, dict[str, torch.Tensor]] = {"B": {}, "A": {}, "head": {}, "began": {}}
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata()
            for key in opened.keys():  # noqa: SIM118
                kind, _, name = key.partition(":")
                parts[kind][name] = opened.get_tensor(key)
        factors = {name: Factors(B_NR, parts["A"][name]) for name, B_NR in parts["B"].items()}
        began = {name: x.numpy() for name, x in parts["began"].items()}
        return Made(
            said["worker"], said["task"], Adapter(factors, parts["head"]), int(said["base_version"]), began or None
        )


def loudness(rng: Random, often: int = 1) -> float:
    """Of an update: mostly like the others', sometimes one that is to be kept aside."""
    return rng.choices((1.0, 30.0, 0.03), (0.8, 0.14 * often, 0.06 * often))[0]
