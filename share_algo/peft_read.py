"""Read a PEFT LoRA folder without PEFT: plain JSON and safetensors, nothing that can execute.

The scaling that PEFT would apply (lora_alpha, rsLoRA, rank_pattern, alpha_pattern) is folded into B. What would
change the function in a way that factors do not hold (DoRA, trained biases, ...) is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from share_algo.errors import AlgebraError
from share_algo.files import read_bytes
from share_algo.types import EMBEDDING, LINEAR, Adapter, Factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
CONFIG_BYTES_MAX = 1 << 22
TENSORS_MAX = 100_000
PATTERN_CHARS_MAX = 500
"""Pattern keys are regular expressions: nobody needs a longer one than the longest module name."""

KEPT = ("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "modules_to_save", "revision", "task_type")
"""Settings that travel with the adapter and are written back."""

REFUSED = {
    "use_dora": "DoRA rescales the whole weight",
    "lora_bias": "lora_B has a bias",
    "layer_replication": "it repeats layers of the base model",
    "alora_invocation_tokens": "activated LoRA acts on some tokens only",
    "use_qalora": "QA-LoRA pools the input",
    "trainable_token_indices": "it trains rows of the embedding",
    "target_parameters": "it targets parameters, not modules",
    "use_bdlora": "block-diagonal LoRA is another product",
    "arrow_config": "it routes between adapters",
    "kasa_config": "KaSA changes the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take a part out of the base weight: B A alone is then not what was learned."""

_TENSOR = re.compile(r"(?P<module>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")


def read_folder(folder: Path) -> Adapter:
    """The adapter in `folder`, factors in float32 (float64 where stored so), head as stored.

    AlgebraError names the file or module and the reason. Cost: the folder's bytes, read once.
    """
    config = _config(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    head = {}
    for key, tensor in _tensors(folder).items():
        name = _without_prefix(key)
        found = _TENSOR.fullmatch(name)
        if found:
            kind = "embedding_" if found["embedding"] else ""
            pairs.setdefault(found["module"], {})[kind + (found["side"] or found["embedding"])] = tensor
        elif ".lora_" in name:
            raise AlgebraError(f"{name.partition('.lora_')[0]}: unknown LoRA tensor {name.rpartition('.lora_')[2]!r}")
        else:
            head[name] = tensor
    if not pairs:
        raise AlgebraError(f"{folder / WEIGHTS}: no LoRA factors in it")
    factors = {module: _factors(module, sides, config) for module, sides in sorted(pairs.items())}
    return Adapter(factors, head, {key: config[key] for key in KEPT if config.get(key)})


def _config(folder: Path) -> dict[str, Any]:
    blob = read_bytes(folder / CONFIG, CONFIG_BYTES_MAX)
    try:
        config = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise AlgebraError(f"{folder / CONFIG}: not JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AlgebraError(f"{folder / CONFIG}: only LoRA is read, and this is {kind!r}")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise AlgebraError(f"{folder / CONFIG}: {key} is set: {reason}, which LoRA factors alone do not hold")
    if config.get("bias", "none") != "none":
        raise AlgebraError(f"{folder / CONFIG}: bias={config['bias']!r}: trained biases of the base model are not kept")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGES_BASE):
        hint = "convert it first (PEFT: path_initial_model_for_weight_conversion)"
        raise AlgebraError(f"{folder / CONFIG}: init_lora_weights={start!r} changes the base weight: {hint}")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
        raise AlgebraError(f"{folder}: adapter_model.bin is a pickle, which is never read; save it as safetensors")
    try:
        tensors = load(read_bytes(folder / WEIGHTS))
    except (SafetensorError, ValueError, KeyError) as error:
        raise AlgebraError(f"{folder / WEIGHTS}: not whole safetensors: {error}") from None
    if len(tensors) > TENSORS_MAX:
        raise AlgebraError(f"{folder / WEIGHTS}: {len(tensors)} tensors; at most {TENSORS_MAX} are read")
    return tensors


def _without_prefix(key: str) -> str:
    if not key.startswith(PREFIX):
        raise AlgebraError(f"{key[:200]}: PEFT's tensor names start with {PREFIX!r}")
    return key.removeprefix(PREFIX)


def _factors(module: str, sides: Mapping[str, Tensor], config: Mapping[str, Any]) -> Factors:
    if set(sides) not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
        raise AlgebraError(f"{module}: has only {', '.join(f'lora_{side}' for side in sorted(sides))}")
    A, B = (sides[side] for side in sorted(sides))
    layout = EMBEDDING if "embedding_A" in sides else LINEAR
    if not (A.is_floating_point() and B.is_floating_point()):
        raise AlgebraError(f"{module}: the factors must be floating-point, not {A.dtype} and {B.dtype}")
    if A.ndim in (3, 4, 5) and layout == LINEAR and B.ndim == A.ndim and B.shape[2:].numel() == 1:
        layout = "conv:" + ",".join(str(size) for size in A.shape[2:])
        A, B = A.flatten(1), B.flatten(1)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or 0 in (*A.shape, *B.shape):
        shapes = " and ".join(str(tuple(sides[side].shape)) for side in sorted(sides))
        raise AlgebraError(
            f"{module}: lora_A and lora_B of shapes {shapes} do not multiply (grouped convolutions neither)"
        )
    dtype = torch.float64 if torch.float64 in (A.dtype, B.dtype) else torch.float32
    return Factors(B.to(dtype) * _scaling(module, A.shape[0], config), A.to(dtype), layout)


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """What PEFT multiplies B A with (LoraLayer.update_layer): alpha / r, or alpha / sqrt(r) for rsLoRA."""
    said = _by_pattern(module, config.get("rank_pattern"), config.get("r", 8))
    if said != rank:
        raise AlgebraError(f"{module}: the factors have rank {rank}, the config says {said}")
    alpha = _by_pattern(module, config.get("alpha_pattern"), config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AlgebraError(f"{module}: lora_alpha {alpha!r} is not a finite number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(module: str, pattern: object, otherwise: Any) -> Any:
    """PEFT's rule (peft.utils.get_pattern_key): the first key that matches the end of the name."""
    if not isinstance(pattern, dict):
        return otherwise
    for key, value in pattern.items():
        if len(key) > PATTERN_CHARS_MAX:
            raise AlgebraError(f"{module}: a pattern key of {len(key)} characters")
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise AlgebraError(f"{module}: pattern key {key!r}: {error}") from None
    return otherwise
