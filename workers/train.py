"""Train what requires a gradient, by the Trainer, for one cycle of learning rates: PEFT's LoRA on the frozen base."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from protos.fedshare.v1.federation_pb2 import FederationSpec, Recipe
from share_algo.constraint import COEFFICIENTS, NEW_DIRECTIONS
from workers.base_model import BaseModel
from workers.tasks import Example


def lora_model(base: BaseModel, spec: FederationSpec, labels: int, rank: int = 0) -> PeftModel:
    """A classifier with LoRA at the federation's target modules; dW = 0, head fresh. rank 0: the federation's."""
    rank = rank or spec.rank
    config = LoraConfig(
        r=rank,
        lora_alpha=spec.recipe.scaling * rank,  # type: ignore[arg-type]
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
    cycle: int,
    callback: TrainerCallback,
    part: range | None = None,
) -> None:
    """Train whatever requires a gradient, for one learning-rate cycle of so many steps, or for a part of it."""
    part = range(cycle) if part is None else part
    optimizer = torch.optim.AdamW(_groups(model, recipe), weight_decay=0.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=cycle + 1)
    for _ in range(part.start):  # without gradients nothing moves but the rates
        optimizer.step()
        schedule.step()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=_arguments(folder, recipe, len(part), seed),
            train_dataset=_encoded(base, examples, recipe.tokens_max),
            data_collator=DataCollatorWithPadding(base.tokenizer),
            optimizers=(optimizer, schedule),  # type: ignore[arg-type]
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


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
