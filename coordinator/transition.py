"""The heart: (state, updates of one task) -> (state, what happened). No files, no clock, no threads; pure.

    replace    the task is the update
    fedasync   C <- (1 - s) C + s C_i with s = mixing * weight(staleness); a task's first update is taken whole
    fedbuff    C <- C + mixing / n * sum_i weight(staleness_i) (C_i - what the task was in i's own base version)

Sums are of dW, exactly: the factors of all parts side by side, then one append. Heads are summed likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from coordinator.staleness import share
from protos.fedshare.v1 import federation_pb2 as pb
from protos.policy import gathers, policy_of, replaces
from share_algo import (
    Adapter,
    AlgebraError,
    Appended,
    Basis,
    Block,
    Certificate,
    TaskEntry,
    Update,
    append,
    keep,
    lift,
    mixed,
)
from share_algo.canonical import whole_norm

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Learned:
    """A task in a basis, what the rows of its head mean, and how true it is."""

    entry: TaskEntry
    labels: Sequence[str]
    certificate: Certificate


@dataclass(frozen=True)
class State:
    """A basis, and what is in it of tasks: at least of those that the next step is about."""

    basis: Basis = field(default_factory=Basis)
    tasks: Mapping[str, Learned] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrived:
    """One update from the journal. base: the basis that it is made for. staleness: versions since its base version.

    begun: what the task was in the base version, where its policy counts differences; None: it was not there.
    norm_sent: ||dW||, where `update` stands in for what was sent, and may be a difference; None: of `update`.
    """

    position: int
    update_id: str
    worker: str
    task: str
    base_version: int
    staleness: int
    base: Basis
    update: Update
    nbytes: int
    labels: Sequence[str]
    metrics: Mapping[str, float]
    begun: TaskEntry | None = None
    norm_sent: float | None = None
    warm_start: str = ""

    @cached_property
    def adapter(self) -> Adapter:
        """What was sent. Raises AlgebraError where the update does not fit its base."""
        return lift(self.update, self.base)

    @cached_property
    def norm(self) -> float:
        """||dW|| of what was sent."""
        return whole_norm(self.adapter) if self.norm_sent is None else self.norm_sent

    def difference(self, weight: float) -> list[tuple[float, Adapter]]:
        """Of what was sent from what it began with, as parts of a sum, times `weight`."""
        before = [] if self.begun is None else [(-weight, self.begun.adapter(self.base))]
        return [(weight, self.adapter), *before]


@dataclass(frozen=True)
class Record:
    """Where a version came from and what it cost; field by field as in federation.proto's VersionRecord.

    Of a version that is no merge: update_id is the command's, and beside the basis only kind and note say something.
    """

    position: int = 0
    task: str = ""
    worker: str = ""
    update_id: str = ""
    base_version: int = 0
    staleness: int = 0
    relative_error: float = 0.0
    relative_error_max: float = 0.0
    new_out: int = 0
    new_in: int = 0
    basis_out: int = 0
    basis_in: int = 0
    bytes_sent: int = 0
    bytes_lora: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    kind: pb.VersionKind = pb.VERSION_KIND_MERGE
    note: str = ""
    weight: float = 1.0
    norm: float = 0.0
    largest_error: float = 0.0
    warm_start: str = ""


@dataclass(frozen=True)
class Merged:
    """block: what the basis grew by; learned: the task from now on; records: one for each update, in their order."""

    block: Block
    learned: Learned
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Skipped:
    reason: str


@dataclass(frozen=True)
class _Sum:
    """Parts of the new value; what the updates weigh; error that the old value brings along.

    as_it_is: the only part, where it is in coordinates of the basis already.
    """

    parts: Sequence[tuple[float, Adapter]]
    weights: Sequence[float]
    carried: float = 0.0
    as_it_is: Appended | None = None


def step(state: State, arrived: Sequence[Arrived], spec: pb.FederationSpec) -> tuple[State, Merged | Skipped]:
    """Merge updates of one task: one, or all of a buffer. On Skipped the state is the one that was handed in."""
    task, labels = arrived[-1].task, arrived[-1].labels
    now, policy = state.tasks.get(task), policy_of(spec.policies, task)
    known = [now.labels] if now and not replaces(policy) else []
    if any(list(theirs) != list(labels) for theirs in (*known, *(one.labels for one in arrived))):
        return state, Skipped(f"its labels are not those of the task's other updates: {', '.join(labels)}")
    try:
        total = _sum(policy, state.basis, now, arrived)
        appended = total.as_it_is or append(state.basis, mixed(total.parts), tolerance=spec.tolerance)
    except AlgebraError as error:
        return state, Skipped(str(error))
    block, kept = appended.update.block, appended.certificate.summed(total.carried)
    learned = Learned(appended.update.entry, labels, kept)
    records = tuple(_record(a, w, appended, spec.rank) for a, w in zip(arrived, total.weights, strict=True))
    grown = state.basis.grown(block) if block else state.basis
    return State(grown, {**state.tasks, task: learned}), Merged(block, learned, records)


def _sum(policy: pb.Policy, basis: Basis, now: Learned | None, arrived: Sequence[Arrived]) -> _Sum:
    if gathers(policy):
        weights = [share(policy, a.staleness) for a in arrived]
        parts = [p for a, w in zip(arrived, weights, strict=True) for p in a.difference(w / len(arrived))]
        old = 1.0
    else:
        [only] = arrived
        weights = [1.0 if replaces(policy) or now is None else share(policy, only.staleness)]
        parts = [(weights[0], only.adapter)]
        old = 1.0 - weights[0]
    if now is None or replaces(policy):
        whole = parts[0][0] == 1.0 and len(parts) == 1
        return _Sum(parts, weights, as_it_is=keep(basis, arrived[-1].update, arrived[-1].base) if whole else None)
    return _Sum([*parts, (old, now.entry.adapter(basis))], weights, old * now.certificate.error)


def _record(arrived: Arrived, weight: float, appended: Appended, rank: int) -> Record:
    modules = appended.modules.values()
    return Record(
        position=arrived.position,
        task=arrived.task,
        worker=arrived.worker,
        update_id=arrived.update_id,
        base_version=arrived.base_version,
        staleness=arrived.staleness,
        relative_error=appended.relative_error,
        relative_error_max=max(m.relative_error for m in modules),
        new_out=max(m.new_out for m in modules),
        new_in=max(m.new_in for m in modules),
        basis_out=max(m.K for m in modules),
        basis_in=max(m.L for m in modules),
        bytes_sent=arrived.nbytes,
        bytes_lora=_bytes_as_lora(arrived.adapter, rank),
        metrics=dict(arrived.metrics),
        weight=weight,
        norm=arrived.norm,
        warm_start=arrived.warm_start,
    )


def _bytes_as_lora(adapter: Adapter, rank: int) -> int:
    """What plain LoRA of the federation's rank would send for this task: float32, head included."""
    numbers = sum(rank * sum(factors.shape) for factors in adapter.factors.values())
    return FLOAT32_BYTES * (numbers + sum(tensor.numel() for tensor in adapter.head.values()))
