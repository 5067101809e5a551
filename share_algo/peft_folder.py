"""An adapter as a standard PEFT LoRA folder, which PEFT itself and everything that reads PEFT can load.

Factors are written as they are, with scaling 1 (lora_alpha = r); a module of smaller rank gets its own entry
in rank_pattern.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from peft import LoraConfig, TaskType
from safetensors.torch import save_file

from share_algo.training import PREFIX
from share_algo.types import Adapter

LABELS_FILE = "labels.json"


def save_adapter(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str,
    labels: Sequence[str] = (),
    task_type: TaskType = TaskType.SEQ_CLS,
) -> None:
    """Write adapter_config.json and adapter_model.safetensors, and labels.json: what the head's rows mean."""
    ranks = {module: factors.rank for module, factors in adapter.factors.items()}
    rank = max(ranks.values())
    smaller = {module: r for module, r in ranks.items() if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        rank_pattern=smaller,
        alpha_pattern=smaller,
        target_modules=sorted(ranks),
        modules_to_save=sorted({name.partition(".")[0] for name in adapter.head}) or None,
        task_type=task_type,
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.head.items()}
    for module, factors in adapter.factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = factors.A_RD.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = factors.B_NR.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    if labels:
        (folder / LABELS_FILE).write_text(json.dumps(list(labels), ensure_ascii=False, indent=1))
