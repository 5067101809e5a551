"""What a model makes of a task's examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from workers.tasks import Example

BATCH = 64


@torch.no_grad()
def logits_of(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], tokens_max: int
) -> Tensor:
    """(examples, labels) in float32, in the order given."""
    rows = {i: row for chosen, logits in _batches(model, tokenizer, examples, tokens_max)
            for i, row in zip(chosen, logits, strict=True)}  # fmt: skip
    return torch.stack([rows[i] for i in range(len(examples))])


@torch.no_grad()
def features_of(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], tokens_max: int
) -> Tensor | None:
    """(examples, numbers) in float32: what the head gets of each. None where it does not get one vector of each, nor
    one of each token among which the model then chooses."""
    head = head_of(model)
    if head is None:
        return None
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.register_forward_hook(lambda _, got, gave: seen.append((got[0].float().cpu(), gave.float().cpu())))
    order: list[int] = []
    rows: list[Tensor | None] = []
    try:
        for chosen, logits in _batches(model, tokenizer, examples, tokens_max):
            order += chosen
            rows.append(_chosen(*seen.pop(), logits))
    finally:
        hook.remove()
    features = [row for row in rows if row is not None]
    return torch.cat(features)[torch.tensor(order).argsort()] if len(features) == len(rows) else None


def _chosen(got: Tensor, gave: Tensor, logits: Tensor) -> Tensor | None:
    """Of a batch: what the head got where it gave the model's logits; of many tokens that may be any one (a decoder's
    last). None where it can't be said."""
    if got.ndim == 2:
        return got
    if got.ndim != 3 or gave.shape != (*got.shape[:2], logits.shape[1]):
        return None
    off, token = (gave - logits[:, None]).abs().amax(dim=2).min(dim=1)
    return None if off.any() else got[torch.arange(len(got)), token]


def head_of(model: PeftModel) -> ModulesToSaveWrapper | None:
    """What is trained whole for the task, if there is such a part; the first, where there are several."""
    return next((m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)), None)


def _batches(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], tokens_max: int
) -> Iterator[tuple[list[int], Tensor]]:
    """(places, logits in float32). Texts of like length share a batch, to save padding."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        texts = [examples[i][0] for i in chosen]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=tokens_max, return_tensors="pt")
        yield chosen, model(**batch.to(device)).logits.float().cpu()


def accuracy(logits: Tensor, examples: Sequence[Example]) -> float:
    """Share of examples, 0..1, whose largest logit is their label's."""
    labels = torch.tensor([label for _, label in examples])
    return float((logits.argmax(dim=1) == labels).double().mean())


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |a|: how far the function kept is from the function trained."""
    return float((a - b).abs().max() / a.abs().max())
