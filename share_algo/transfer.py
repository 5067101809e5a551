"""Start where a known task ended: warm starts for new tasks, and refining old ones on a newer basis (Share-full).

A task's coefficients are a few kB beside a basis that is there anyway, so trying one costs no more than judging it.
Only coefficients are taken: what another task's head makes of its features says nothing about new labels. So a
candidate is judged by what a *fresh* head could make of its features: `probe_loss`, one pass over a little data and a
ridge regression in closed form, instead of steps of training for each candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor

from share_algo.lora_layers import lora_pairs
from share_algo.subspace import Merged, Subspace, merge
from share_algo.training import attach_head, begin, constrain, constraints, release


@dataclass(frozen=True)
class WarmStart:
    """task: whose coefficients the model starts with; None: its own start at dW = 0. losses: of all that were tried."""

    task: str | None
    losses: Mapping[str | None, float]


def warm_start(
    model: PeftModel,
    subspace: Subspace,
    loss: Callable[[PeftModel], float],
    *,
    tasks: Iterable[str] | None = None,
    adapter_name: str = "default",
) -> WarmStart:
    """Let a model constrained to `subspace` start from the task's coefficients that `loss` likes best, or as it is.

    loss: lower is better; called once as the model is (None) and once for each of `tasks` (all of them by default), in
    evaluation mode; NaN counts as infinite. A task must be better than None, or the model is bitwise what it was: at
    dW = 0, off the saddle. AlgebraError where the model is not constrained, or a task does not fit it.
    Cost: a copy of the coefficients, and the calls of `loss`.
    """
    pairs, sides = dict(lora_pairs(model, adapter_name)), constraints(model, adapter_name)
    own = [parameter for pair in sides.values() for side in pair for parameter in side.parameters()]
    before = [parameter.detach().clone() for parameter in own]
    was_training = model.training
    model.eval()
    losses: dict[str | None, float] = {None: _judged(loss(model))}
    try:
        for task in subspace.tasks if tasks is None else tasks:
            begin(pairs, sides, subspace.entry(task))
            losses[task] = _judged(loss(model))
            _restore(own, before)
    finally:
        _restore(own, before)
        model.train(was_training)
    best = min(losses, key=lambda task: losses[task])
    if best is not None:
        begin(pairs, sides, subspace.entry(best))
    return WarmStart(best, losses)


def refine(
    model: PeftModel,
    subspace: Subspace,
    task: str,
    train: Callable[[PeftModel], object],
    *,
    adapter_name: str = "default",
) -> Merged:
    """Train an old task's coefficients and head on its own data, in the basis as it is now, and put them back.

    The model starts as the task is in `subspace`; `train` trains whatever requires a gradient. Afterwards it is plain
    LoRA, the basis and all other tasks are bitwise what they were, and the certificate is that of what was trained now.
    Share-full of arXiv:2602.06043.
    """
    entry = subspace.entry(task)
    constrain(model, subspace, new_directions=0, adapter_name=adapter_name, start=entry)
    try:
        attach_head(model, entry.head, adapter_name)
        train(model)
    finally:
        learned = release(model, adapter_name)
    return merge(subspace, task, replace(learned, settings=entry.settings))


def _judged(loss: float) -> float:
    return math.inf if math.isnan(loss) else float(loss)


@torch.no_grad()
def _restore(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
