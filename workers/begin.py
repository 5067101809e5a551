"""With which known task's coefficients a new one begins: that of whose features a fresh head could make most."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch
from peft import PeftModel

from protos.fedshare.v1.federation_pb2 import FederationSpec
from share_algo import Basis, Subspace, TaskEntry, probe_loss
from share_algo.transfer import warm_start as best_start
from workers.base_model import BaseModel
from workers.evaluate import features_of
from workers.tasks import TaskData

PROBE_EXAMPLES = 128
"""Of the training split, to judge a start by: a pass over them forward, for each start that is tried."""


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
    examples = random.Random(spec.seed).sample(task.train, min(PROBE_EXAMPLES, len(task.train)))
    labels = torch.tensor([label for _, label in examples])

    def loss(tried: PeftModel) -> float:
        features = features_of(tried, base.tokenizer, examples, spec.recipe.tokens_max)
        return math.inf if features is None else probe_loss(features, labels)

    return best_start(model, Subspace(basis, known), loss).task or ""
