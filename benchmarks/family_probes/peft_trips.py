"""Families 7 and 8: the function that a PEFT adapter computes comes back, however the adapter is written."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.algebra_samples import Sample, relative_error, shared_columns, shared_mean, write_folder
from benchmarks.family_probes.probe import (
    ALL_DIRECTIONS,
    NOT_APPLICABLE,
    Library,
    Outcome,
    Place,
    Probe,
    first_line,
    mean_error,
)

LOGITS_SAME = 1e-3
"""Largest difference of a logit, over the largest that the adapter makes."""

SETTINGS: dict[str, dict[str, Any]] = {
    "lora_alpha": {"lora_alpha": 16},
    "rsLoRA": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"value": 2}},
    "alpha_pattern": {"alpha_pattern": {"value": 32}},
    "modules_to_save": {"modules_to_save": ["classifier"]},
    "DoRA": {"use_dora": True},
}


def base() -> Any:
    """A BERT classifier with two layers of 32, the same at every call."""
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **shape)).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(48).reshape(6, 8) % 50).logits


def _trained(seed: int, dtype: torch.dtype, **settings: Any) -> Any:
    """A PEFT model, every number of its adapter random."""
    config = {"r": 4, "lora_alpha": 4, "target_modules": ["query", "value"], **settings}
    model = get_peft_model(base(), LoraConfig(**config)).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=g) * 0.3
                parameter.copy_((parameter * (1 + noise) if "magnitude" in name else noise).to(dtype))
    return model


def _written(folder: Path, dtype: torch.dtype, settings: dict[str, Any]) -> tuple[dict[str, Path], torch.Tensor]:
    """Four adapters of the same settings, as PEFT saves them, and the logits of the second."""
    folders = {f"t{seed}": folder / "adapters" / f"t{seed}" for seed in range(4)}
    for seed, (task, path) in enumerate(folders.items()):
        model = _trained(seed, dtype, **settings)
        if task == "t1":
            expected = logits(model)
        model.to(dtype).save_pretrained(path)
    return folders, expected


@cache
def _plain_logits() -> torch.Tensor:
    return logits(base())


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / (expected - _plain_logits()).abs().max())


def _kept(settings: dict[str, Any], dtype: torch.dtype, library: type[Library], place: Place) -> Outcome:
    """The library's own model of a task, beside PEFT's. A refusal that names the setting is as good."""
    folders, expected = _written(place.folder, dtype, settings)
    try:
        made = library.built(folders, columns=ALL_DIRECTIONS)
        difference = _difference(logits(made.model("t1", base())), expected)
    except Exception as error:
        said = first_line(error, place.folder)
        if "use_dora" in settings and "dora" in said.lower():
            return Outcome.judged("refused by name", True, said)
        return Outcome.judged(f"raised {said.partition(':')[0]}", False, said)
    return Outcome.judged(_logits(difference), difference <= LOGITS_SAME)


def _logits(difference: float) -> str:
    return "logits equal" if difference <= LOGITS_SAME else f"logits off by {difference:.0%}"


def _round_trip(modules: list[str], library: type[Library], place: Place) -> Outcome:
    """What it exports, loaded by PEFT itself."""
    folders, expected = _written(place.folder, torch.float32, {"target_modules": modules})
    made = library.built(folders, columns=ALL_DIRECTIONS)
    made.export("t1", place.folder / "out")
    try:
        model = PeftModel.from_pretrained(base(), str(place.folder / "out")).eval()
    except Exception as error:
        return Outcome.judged("PEFT refuses it", False, first_line(error, place.folder))
    difference = _difference(logits(model), expected)
    return Outcome.judged(_logits(difference), difference <= LOGITS_SAME)


def _gauge(library: type[Library], place: Place) -> Outcome:
    """(B G, G^-1 A) is the same update: the error must be the same too, at a size that loses something."""
    samples = list(shared_mean(16, 64, 2, 4, 64, 0.01))
    rng = np.random.RandomState(1)
    turned = [{m: _turned(rng, *pair) for m, pair in sample.items()} for sample in samples]
    before, after = (
        mean_error(library.built(place.written(each, name), columns=12), each, name)
        for name, each in (("as", samples), ("turned", turned))
    )
    return Outcome.judged(f"error {before:.2g}, rotated {after:.2g}", abs(after - before) <= 0.01 * before + 1e-6)


def _turned(rng: np.random.RandomState, B: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    G = np.linalg.qr(rng.standard_normal((B.shape[1], B.shape[1])))[0] @ np.diag(rng.uniform(0.5, 2, B.shape[1]))
    return (B @ G).astype(np.float32), (np.linalg.inv(G) @ A).astype(np.float32)


def _identical(library: type[Library], place: Place) -> Outcome:
    """N identical adapters, merged, are the adapter."""
    sample: Sample = next(shared_columns(1, 64, 2, 4, 12, 0.02))
    folders = [write_folder(sample, place.folder / "adapters" / f"t{i}") for i in range(8)]
    errors = {name: relative_error(sample, merge(folders)) for name, merge in library.merges().items()}
    if not errors:
        return Outcome("it merges none", NOT_APPLICABLE)
    cell = ", ".join(f"{name} {error:.2g}" for name, error in errors.items())
    return Outcome.judged(f"errors: {cell}", max(errors.values()) <= 1e-5)


PROBES = [
    Probe(7, "rotated factors", _gauge),
    *(Probe(7, name, partial(_kept, said, torch.float32)) for name, said in SETTINGS.items()),
    Probe(7, "bfloat16", partial(_kept, {}, torch.bfloat16)),
    Probe(7, "float16", partial(_kept, {}, torch.float16)),
    Probe(8, "round trip, query and value", partial(_round_trip, ["query", "value"])),  # PEFT's own choice for BERT
    Probe(8, "round trip, key too", partial(_round_trip, ["query", "key", "value"])),
    Probe(8, "8 identical adapters", _identical),
]
