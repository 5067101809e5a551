"""What a new task begins with: the coefficients of the known task of whose features a fresh head could make most, and
the head that makes most of them, before anything else is learned."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor, nn

from protos.fedshare.v1.federation_pb2 import FederationSpec
from share_algo import Basis, Subspace, TaskEntry, linear_probe, probe_loss
from share_algo.transfer import warm_start as best_start
from workers.base_model import BaseModel
from workers.evaluate import features_of, head_of
from workers.tasks import Example, TaskData

PROBED_NUMBERS_MAX = 1 << 22
"""A larger head begins at random: fitting it takes twenty times its own memory, in float64."""
JUDGED_BY = 128
"""Examples of the training split: a pass over them forward, for each start that is tried."""


def warm_start(
    model: PeftModel,
    base: BaseModel,
    spec: FederationSpec,
    basis: Basis,
    task: TaskData,
    known: Mapping[str, TaskEntry],
) -> str:
    """Let a model that is constrained to `basis` begin with the coefficients of the best of the `known` tasks.

    Returns its name; empty, and the model as it was, where none is better than the model's own start, or where
    the head does not get one vector of each text. Deterministic.
    """
    examples, labels = _some(task, JUDGED_BY, spec.seed)

    def loss(tried: PeftModel) -> float:
        features = _features(tried, base, spec, examples)
        return math.inf if features is None else probe_loss(features, labels)

    return best_start(model, Subspace(basis, known), loss).task or ""


@torch.no_grad()
def probed_head(model: PeftModel, base: BaseModel, spec: FederationSpec, task: TaskData) -> bool:
    """Let the head begin as a linear probe of what it gets now, of as many examples as the recipe says.

    False, and the head as it was, where the recipe wants none or the head is not one linear layer, of at most
    PROBED_NUMBERS_MAX, that gets one vector of each text. Deterministic. Cost: a pass over the examples forward.
    """
    head = head_of(model)
    layer = head.modules_to_save[head.active_adapters[0]] if head else None
    if not spec.recipe.probe_examples or not isinstance(layer, nn.Linear) or layer.weight.numel() > PROBED_NUMBERS_MAX:
        return False
    examples, labels = _some(task, spec.recipe.probe_examples, spec.seed)
    features = _features(model, base, spec, examples)
    if features is None:
        return False
    weight, bias = linear_probe(features, labels, len(task.labels))
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)
    return True


def _features(model: PeftModel, base: BaseModel, spec: FederationSpec, examples: Sequence[Example]) -> Tensor | None:
    """None where nothing can be judged by them."""
    if len(examples) < 2:
        return None
    return features_of(model, base.tokenizer, examples, spec.recipe.tokens_max)


def _some(task: TaskData, count: int, seed: int) -> tuple[Sequence[Example], Tensor]:
    """At most so many training examples, and their labels."""
    examples = random.Random(seed).sample(task.train, min(count, len(task.train)))
    return examples, torch.tensor([label for _, label in examples])
