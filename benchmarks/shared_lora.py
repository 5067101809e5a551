"""One LoRA for all tasks, with a head for each: trained on all of them at once, or on one after another.

The heads are stretches of one classifier; a batch holds one task's examples and sees its stretch only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

from protos.fedshare.v1 import federation_pb2 as pb
from workers.base_model import BaseModel
from workers.evaluate import accuracy, logits_of
from workers.tasks import Example, TaskData
from workers.train import lora_model, steps_of

Found = dict[str, tuple[float, int, float]]
"""(accuracy at the end, a task's share of the adapter's bytes, what was forgotten since it was learned)."""


def joint(base: BaseModel, spec: pb.FederationSpec, tasks: Mapping[str, TaskData], rate: float) -> Found:
    """All tasks' steps in one random order, one cycle of the learning rate."""
    run = _Run(base, spec, tasks, rate)
    batches = [(name, batch) for name in tasks for batch in run.batches(name)]
    random.Random(spec.seed).shuffle(batches)
    run.train(batches)
    return {name: (run.accuracy(name), run.nbytes, 0.0) for name in tasks}


def sequential(base: BaseModel, spec: pb.FederationSpec, tasks: Mapping[str, TaskData], rate: float) -> Found:
    """One cycle of the learning rate for each task, in the order given."""
    run, learned = _Run(base, spec, tasks, rate), {}
    for name in tasks:
        run.train([(name, batch) for batch in run.batches(name)])
        learned[name] = run.accuracy(name)
    at_end = {name: run.accuracy(name) for name in tasks}
    return {name: (at_end[name], run.nbytes, learned[name] - at_end[name]) for name in tasks}


class _Run:
    def __init__(self, base: BaseModel, spec: pb.FederationSpec, tasks: Mapping[str, TaskData], rate: float):
        self._base, self._spec, self._tasks, self._rate = base, spec, tasks, rate
        ends = torch.tensor([len(task.labels) for task in tasks.values()]).cumsum(0).tolist()
        self._stretch = {n: slice(end - len(t.labels), end) for (n, t), end in zip(tasks.items(), ends, strict=True)}
        self._model: PeftModel = lora_model(base, spec, ends[-1])
        trainable = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self.nbytes = 4 * trainable // len(tasks)

    def batches(self, name: str) -> Iterator[list[Example]]:
        """As many as a task alone would have, neighbours of like length."""
        size, examples = self._spec.recipe.batch_size, list(self._tasks[name].train)
        shuffled = random.Random(self._spec.seed)
        left = steps_of(self._spec.recipe, len(examples))
        while left:
            shuffled.shuffle(examples)
            wide = [
                sorted(examples[i : i + 8 * size], key=lambda e: len(e[0])) for i in range(0, len(examples), 8 * size)
            ]
            chosen = [part[i : i + size] for part in wide for i in range(0, len(part), size)][:left]
            shuffled.shuffle(chosen)
            yield from chosen
            left -= len(chosen)

    def train(self, batches: list[tuple[str, list[Example]]]) -> None:
        recipe = self._spec.recipe
        head = [p for n, p in self._model.named_parameters() if p.requires_grad and ".lora_" not in n]
        factors = [p for n, p in self._model.named_parameters() if p.requires_grad and ".lora_" in n]
        groups = [{"params": factors, "lr": self._rate}, {"params": head, "lr": recipe.learning_rate_head}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=len(batches) + 1)
        self._model.train()
        for name, batch in batches:
            labels = torch.tensor([label for _, label in batch])
            loss = nn.functional.cross_entropy(self._logits(name, [text for text, _ in batch]), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(factors + head, 1.0)
            optimizer.step()
            schedule.step()

    def _logits(self, name: str, texts: list[str]) -> Tensor:
        tokens_max = self._spec.recipe.tokens_max
        tokens = self._base.tokenizer(texts, padding=True, truncation=True, max_length=tokens_max, return_tensors="pt")
        return self._model(**tokens).logits[:, self._stretch[name]]

    def accuracy(self, name: str) -> float:
        test = self._tasks[name].test
        logits = logits_of(self._model, self._base.tokenizer, test, self._spec.recipe.tokens_max)
        return accuracy(logits[:, self._stretch[name]], test)
