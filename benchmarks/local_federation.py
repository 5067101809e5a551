"""The federation's recipe in one process: `workers.fit`, lift and merge as they are, without gRPC, Ray and disk.

As with so many workers at once, a task is fitted beside the basis as it was when the worker before its own was done.
Accuracies are measured on the last version, and compared with what each update gave when it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from coordinator.start import start_block
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Adapter, Basis, Subspace, lift, merge
from share_algo.codec import decode_update
from share_algo.training import attach
from workers.base_model import BaseModel
from workers.evaluate import accuracy, logits_of
from workers.fit import fit
from workers.tasks import TaskData
from workers.train import lora_model
from workers.weights import weights_for

Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Local:
    """accuracies: 0..1 at the end by task; forgotten: largest loss of one since learned; sent: blobs; kept: bytes."""

    accuracies: Mapping[str, float]
    forgotten: float
    sent: Mapping[str, bytes]
    kept: int
    kept_with_basis: int


def federate(
    base: BaseModel, spec: pb.FederationSpec, tasks: Iterable[TaskData], tell: Tell, at_once: int = 2
) -> Local:
    """Fit and merge the tasks in the order given."""
    tasks = list(tasks)
    versions, sent, learned = [_version_0(base, spec)], {}, {}
    for number, task in enumerate(tasks):
        seen = versions[max(0, number + 1 - at_once)]
        newest = list(seen.tasks)[-spec.recipe.warm_starts :] if spec.recipe.warm_starts else []
        blob = fit(base, spec, seen.basis, task, known={name: seen.entry(name) for name in newest}).blob
        adapter = lift(decode_update(blob), seen.basis)
        sent[task.name], learned[task.name] = blob, _accuracy(base, spec, task, adapter)
        versions.append(merge(versions[-1], task.name, adapter, tolerance=spec.tolerance).subspace)
        tell(task.name, learned[task.name])
    head = versions[-1]
    at_end = {task.name: _accuracy(base, spec, task, head.adapter(task.name)) for task in tasks}
    forgotten = max(learned[name] - at_end[name] for name in learned)
    return Local(at_end, forgotten, sent, head.nbytes(coefficients_only=True), head.nbytes())


def _version_0(base: BaseModel, spec: pb.FederationSpec) -> Subspace:
    start = start_block(spec, weights_for(spec, base))
    return Subspace(Basis((start,))) if start else Subspace.empty()


def _accuracy(base: BaseModel, spec: pb.FederationSpec, task: TaskData, adapter: Adapter) -> float:
    model = attach(lora_model(base, spec, len(task.labels)), adapter)
    return accuracy(logits_of(model, base.tokenizer, task.test, spec.recipe.tokens_max), task.test)
