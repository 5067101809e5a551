"""What a model makes of a task's test split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from workers.tasks import Example

BATCH = 64


@torch.no_grad()
def logits_of(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], tokens_max: int
) -> Tensor:
    """(examples, labels) in float32, in the order given. Texts of like length share a batch, to save padding."""
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    rows: dict[int, Tensor] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        texts = [examples[i][0] for i in chosen]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=tokens_max, return_tensors="pt")
        rows.update(zip(chosen, model(**batch.to(device)).logits.float().cpu(), strict=True))
    return torch.stack([rows[i] for i in range(len(examples))])


def accuracy(logits: Tensor, examples: Sequence[Example]) -> float:
    """Share of examples, 0..1, whose largest logit is their label's."""
    labels = torch.tensor([label for _, label in examples])
    return float((logits.argmax(dim=1) == labels).double().mean())


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |a|: how far the function kept is from the function trained."""
    return float((a - b).abs().max() / a.abs().max())
