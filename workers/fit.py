"""Fit one task: PEFT's LoRA on the frozen base model, constrained to the shared basis, trained by the Trainer."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from protos.fedshare.v1.federation_pb2 import FederationSpec, Recipe
from share_algo import Adapter, Basis, TaskEntry, append, lift, mixed
from share_algo.canonical import whole_norm
from share_algo.codec import decode_update, encode_update
from share_algo.constraint import COEFFICIENTS, NEW_DIRECTIONS
from share_algo.training import attach, attach_head, constrain, release
from workers.base_model import BaseModel
from workers.tasks import Example, TaskData

Progress = Callable[[int, int], None]
"""(steps done, steps in all)."""


@dataclass(frozen=True)
class Fitted:
    """A trained task. `model` is plain PEFT LoRA again, and computes exactly what the update `blob` means."""

    model: PeftModel
    blob: bytes
    steps: int
    seconds: float


def fit(
    base: BaseModel,
    spec: FederationSpec,
    basis: Basis,
    task: TaskData,
    *,
    start: TaskEntry | None = None,
    progress: Progress = lambda done, total: None,
    pause_seconds: float = 0.0,
) -> Fitted:
    """Train beside the basis, then keep the fewest directions and ranks that hold what was learned, in compact form.

    start: what the task is in this basis, to begin with; what is learned is then the difference from it.
    Deterministic for a given thread count.
    """
    model = lora_model(base, spec, len(task.labels), max(spec.rank, rank_of(start)) if start else 0)
    steps = steps_of(spec.recipe, len(task.train))
    directions, later = spec.directions, is_wide(spec, basis)
    new = directions.later if later else directions.first
    constrain(model, basis, new_directions=new, seed=spec.seed, inside=later, start=start)
    if start is not None:
        attach_head(model, start.head)
    started = time.monotonic()
    train(model, base, _recipe(spec, later), task.train, spec.seed, steps, _Steps(progress, pause_seconds))
    learned = release(model)
    small = append(basis, learned, tolerance=directions.tolerance * _share_learned(learned, start, basis)).update
    blob = encode_update(small, compact=True, direction_bits=directions.bits or 8)
    attach(model, lift(decode_update(blob), basis))
    return Fitted(model, blob, steps, time.monotonic() - started)


def _share_learned(now: Adapter, start: TaskEntry | None, basis: Basis) -> float:
    """Of dW, at most 1: what is dropped for a smaller update is measured by what was learned, not by what was known."""
    if start is None:
        return 1.0
    learned, all_of_it = whole_norm(mixed([(1.0, now), (-1.0, start.adapter(basis))])), whole_norm(now)
    return min(1.0, learned / all_of_it) if all_of_it else 1.0


def rank_of(entry: TaskEntry) -> int:
    """Largest over modules: where several updates were added up it has more ranks than one."""
    return max((c.P_KR.shape[1] for c in entry.coefficients.values()), default=0)


def is_wide(spec: FederationSpec, basis: Basis) -> bool:
    """Whether the basis has as many columns, on average, as tasks need to begin inside it."""
    widths = basis.widths()
    sides = [width for m in spec.modules for width in widths.get(m.name, (0, 0))]
    return sum(sides) >= spec.directions.basis_target * len(sides)


def _recipe(spec: FederationSpec, later: bool) -> Recipe:
    recipe = Recipe()
    recipe.CopyFrom(spec.recipe)
    if later and spec.recipe.learning_rate_directions_later:
        recipe.learning_rate_directions = spec.recipe.learning_rate_directions_later
    return recipe


def lora_model(base: BaseModel, spec: FederationSpec, labels: int, rank: int = 0) -> PeftModel:
    """A classifier with LoRA at the federation's target modules; dW = 0, head fresh. rank 0: the federation's."""
    rank = rank or spec.rank
    config = LoraConfig(
        r=rank,
        lora_alpha=spec.recipe.scaling * rank,
        target_modules=[m.name for m in spec.modules],
        task_type=TaskType.SEQ_CLS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return get_peft_model(base.classifier(labels, spec.seed), config)


def steps_of(recipe: Recipe, examples: int) -> int:
    """Optimizer steps of a whole fit."""
    return max(1, round(-(-examples // recipe.batch_size) * recipe.epochs))


def train(
    model: PeftModel,
    base: BaseModel,
    recipe: Recipe,
    examples: Sequence[Example],
    seed: int,
    steps: int,
    callback: TrainerCallback,
) -> None:
    """Train whatever requires a gradient, for so many steps of one learning-rate cycle."""
    optimizer = torch.optim.AdamW(_groups(model, recipe), weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps + 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=_arguments(folder, recipe, steps, seed),
            train_dataset=_encoded(base, examples, recipe.tokens_max),
            data_collator=DataCollatorWithPadding(base.tokenizer),
            optimizers=(optimizer, schedule),
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class _Steps(TrainerCallback):
    def __init__(self, progress: Progress, pause_seconds: float):
        self._progress, self._pause = progress, pause_seconds

    def on_step_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        self._progress(state.global_step, state.max_steps)
        time.sleep(self._pause)


def _arguments(folder: str, recipe: Recipe, steps: int, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )


def _groups(model: PeftModel, recipe: Recipe) -> list[dict[str, object]]:
    """Parameters by learning rate."""
    rates: dict[float, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            rates.setdefault(_rate(name, parameter, recipe), []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]


def _rate(name: str, parameter: Tensor, recipe: Recipe) -> float:
    """Plain LoRA's factors, where nothing is constrained, are trained as new directions are.

    Adam moves every entry alike, so a column of lora_B moves with the square root of the number of its
    coefficients: dividing by that keeps the movement the same however wide the basis has grown.
    """
    if name.endswith(COEFFICIENTS):
        return recipe.learning_rate / math.sqrt(len(parameter))
    full = name.endswith(NEW_DIRECTIONS) or ".lora_" in name
    return recipe.learning_rate_directions if full else recipe.learning_rate_head


def _encoded(base: BaseModel, examples: Sequence[Example], tokens_max: int) -> list[dict[str, object]]:
    texts = base.tokenizer([text for text, _ in examples], truncation=True, max_length=tokens_max)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": label, "length": len(ids)}
        for ids, mask, (_, label) in zip(texts["input_ids"], texts["attention_mask"], examples, strict=True)
    ]
