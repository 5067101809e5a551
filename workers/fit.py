"""Fit one task: inside the shared basis, or as plain LoRA; cut to what must travel; recover inside that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from peft import PeftModel
from transformers import TrainerCallback

from protos.fedshare.v1.federation_pb2 import START_KIND_EMPTY, FederationSpec
from share_algo import Adapter, Basis, TaskEntry, Update, append, lift, mixed
from share_algo.canonical import whole_norm
from share_algo.codec import decode_update, encode_update
from share_algo.training import attach, attach_head, coefficients, constrain, release
from workers.base_model import BaseModel
from workers.begin import probed_head, warm_start
from workers.tasks import TaskData
from workers.train import lora_model, steps_of, train

NOTHING_KNOWN: Mapping[str, TaskEntry] = MappingProxyType({})

Progress = Callable[[int, int], None]
"""(steps done, steps in all)."""


@dataclass(frozen=True)
class Fitted:
    """A trained task. `model` is plain PEFT LoRA again, and computes exactly what the update `blob` means.

    warm_start: the task with whose coefficients it began; empty where it began by itself.
    """

    model: PeftModel
    blob: bytes
    steps: int
    seconds: float
    warm_start: str = ""


def fit(
    base: BaseModel,
    spec: FederationSpec,
    basis: Basis,
    task: TaskData,
    *,
    start: TaskEntry | None = None,
    known: Mapping[str, TaskEntry] = NOTHING_KNOWN,
    progress: Progress = lambda done, total: None,
    pause_seconds: float = 0.0,
) -> Fitted:
    """Train, then keep the fewest directions and ranks that hold what was learned, in compact form, and train the rest
    of the steps inside these: what the cut has lost is won back without another byte.

    start: what the task is in this basis, to begin with; what is learned is then the difference from it.
    known: other tasks in this basis, with one of which it may begin instead, where tasks begin inside the basis.
    Deterministic for a given thread count.
    """
    started = time.monotonic()
    model = lora_model(base, spec, len(task.labels), max(spec.rank, rank_of(start)) if start else 0)
    steps = steps_of(spec.recipe, len(task.train))
    cut = max(1, steps - round(spec.recipe.recovery * steps))
    recipe, told = spec.recipe, _Steps(progress, pause_seconds, steps)

    _begin(model, spec, basis, start)
    may = known and start is None and is_inside(spec)
    warm = warm_start(model, base, spec, basis, task, known) if may else ""
    if start is None:
        probed_head(model, base, spec, task)
    train(model, base, recipe, task.train, spec.seed, steps, told, range(cut))
    learned = release(model)

    tolerance = spec.directions.tolerance * _share_learned(learned, start, basis)
    sent = decode_update(_encoded(spec, append(basis, learned, tolerance=tolerance).update))
    if cut < steps:
        constrain(model, basis.grown(sent.block), new_directions=0, start=sent.entry, spare=False)
        attach_head(model, sent.entry.head)
        train(model, base, recipe, task.train, spec.seed + 1, steps, told, range(cut, steps))
        inside = coefficients(model)
        sent = Update(sent.block, TaskEntry(inside, release(model).head, sent.entry.settings))

    blob = _encoded(spec, sent)
    attach(model, lift(decode_update(blob), basis))
    return Fitted(model, blob, steps, time.monotonic() - started, warm)


def _begin(model: PeftModel, spec: FederationSpec, basis: Basis, start: TaskEntry | None) -> None:
    """Inside the basis where it began with directions that everybody has; else as plain LoRA, every task with the same
    lora_A, and beside the basis where a task begins with what it is."""
    inside, new = is_inside(spec), spec.directions.first
    beside = basis if inside or start else Basis()
    constrain(model, beside, new_directions=new, seed=spec.seed, inside=inside, start=start)
    attach_head(model, start.head if start else {})


def _encoded(spec: FederationSpec, update: Update) -> bytes:
    return encode_update(update, compact=True, direction_bits=spec.directions.bits or 8)


def _share_learned(now: Adapter, start: TaskEntry | None, basis: Basis) -> float:
    """Of dW, at most 1: what is dropped for a smaller update is measured by what was learned, not by what was known."""
    if start is None:
        return 1.0
    learned, all_of_it = whole_norm(mixed([(1.0, now), (-1.0, start.adapter(basis))])), whole_norm(now)
    return min(1.0, learned / all_of_it) if all_of_it else 1.0


def rank_of(entry: TaskEntry) -> int:
    """Largest over modules: where several updates were added up it has more ranks than one."""
    return max((c.P_KR.shape[1] for c in entry.coefficients.values()), default=0)


def is_inside(spec: FederationSpec) -> bool:
    """Whether tasks begin inside the basis."""
    return spec.start.kind != START_KIND_EMPTY


class _Steps(TrainerCallback):
    """Tells the steps before and after the cut together."""

    def __init__(self, progress: Progress, pause_seconds: float, total: int):
        self._progress, self._pause, self._total, self._done = progress, pause_seconds, total, 0

    def on_step_end(self, args, state, control, **_):
        self._done += 1
        self._progress(self._done, self._total)
        time.sleep(self._pause)
