"""Write an adapter as a standard PEFT LoRA folder, which PEFT itself and everything that reads PEFT can load.

Factors are written as they are, with scaling 1 (lora_alpha = r); a module of smaller rank gets its own entry
in rank_pattern. adapter_config.json is written last: a folder without it is not an adapter yet.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors.torch import save_file
from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.peft_read import PREFIX, WEIGHTS
from share_algo.types import EMBEDDING, LINEAR, Adapter, Factors

LABELS_FILE = "labels.json"


def save_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    labels: Sequence[str] = (),
    task_type: TaskType | str | None = TaskType.SEQ_CLS,
    dtype: torch.dtype | None = None,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, and labels.json: what the head's rows mean.

    dtype: of the factors, else as they are held. AlgebraError names a module that does not fit into it.
    """
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.head.items()}
    for module, factors in adapter.factors.items():
        tensors.update(_as_peft(module, factors, dtype or factors.B_NR.dtype))
    config = _config(adapter, base_model, task_type)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / (WEIGHTS + ".part"), metadata={"format": "pt"})
    os.replace(folder / (WEIGHTS + ".part"), folder / WEIGHTS)
    if labels:
        (folder / LABELS_FILE).write_text(json.dumps(list(labels), ensure_ascii=False, indent=1))
    config.save_pretrained(str(folder))


def _config(adapter: Adapter, base_model: str | None, task_type: TaskType | str | None) -> LoraConfig:
    ranks = {module: factors.rank for module, factors in adapter.factors.items()}
    rank = max(ranks.values())
    smaller = {_pattern(module, ranks): r for module, r in ranks.items() if r != rank}
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=smaller,
        alpha_pattern=dict(smaller),
        target_modules=sorted(ranks),
        modules_to_save=adapter.settings.get("modules_to_save") or _heads(adapter.head),
        task_type=task_type,
        base_model_name_or_path=base_model,
        revision=adapter.settings.get("revision"),
        auto_mapping=adapter.settings.get("auto_mapping"),
        fan_in_fan_out=bool(adapter.settings.get("fan_in_fan_out", False)),
        inference_mode=True,
    )


def _pattern(module: str, modules: Iterable[str]) -> str:
    """A key of rank_pattern that means this module only: PEFT takes a plain name for the end of a name."""
    alone = not any(other.endswith(f".{module}") for other in modules)
    return module if alone else f"^{re.escape(module)}"


def _heads(names: Iterable[str]) -> list[str] | None:
    """Top modules of the head, where nobody said which they are. A targeted layer's own weight is none."""
    return sorted({name.partition(".")[0] for name in names if ".base_layer." not in name}) or None


def _as_peft(module: str, factors: Factors, dtype: torch.dtype) -> dict[str, Tensor]:
    A, B = factors.A_RD.to(dtype).contiguous(), factors.B_NR.to(dtype).contiguous()
    if not (A.isfinite().all() and B.isfinite().all()):
        raise AlgebraError(f"{module}: the factors do not fit into {dtype}")
    if factors.layout == EMBEDDING:
        return {f"{PREFIX}{module}.lora_embedding_A": A, f"{PREFIX}{module}.lora_embedding_B": B}
    if factors.layout != LINEAR:
        kernel = [int(size) for size in factors.layout.partition(":")[2].split(",")]
        A, B = A.reshape(A.shape[0], -1, *kernel), B.reshape(*B.shape, *[1] * len(kernel))
    return {f"{PREFIX}{module}.lora_A.weight": A, f"{PREFIX}{module}.lora_B.weight": B}
