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
    """(examples, numbers) in float32: what the head gets of each. None where it does not get one vector of each."""
    head = next((m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)), None)
    if head is None:
        return None
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        order = [i for chosen, _ in _batches(model, tokenizer, examples, tokens_max) for i in chosen]
    finally:
        hook.remove()
    if any(features.ndim != 2 for features in seen):
        return None
    return torch.cat(seen)[torch.tensor(order).argsort()]


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
