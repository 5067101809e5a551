"""The heart: (state, submission) -> (state, what happened). No files, no clock, no threads; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protos.fedshare.v1.federation_pb2 import VERSION_KIND_MERGE, VersionKind
from share_algo import Adapter, AlgebraError, Appended, Basis, Block, Certificate, TaskEntry, Update, append, lift

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class State:
    """What a merge needs to know: the head's number and its basis. Other tasks' coefficients are not touched."""

    head: int
    basis: Basis


@dataclass(frozen=True)
class Arrived:
    """One update from the journal. base: the basis that it is made for. staleness: versions since its base version."""

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
    kind: VersionKind = VERSION_KIND_MERGE
    note: str = ""
    weight: float = 1.0
    norm: float = 0.0
    largest_error: float = 0.0


@dataclass(frozen=True)
class Merged:
    block: Block
    entry: TaskEntry
    certificate: Certificate
    record: Record


@dataclass(frozen=True)
class Skipped:
    reason: str


def step(state: State, arrived: Arrived, tolerance: float, rank: int) -> tuple[State, Merged | Skipped]:
    """Merge one update into the state. On Skipped the state is the one that was handed in."""
    try:
        adapter = lift(arrived.update, arrived.base)
        appended = append(state.basis, adapter, tolerance=tolerance)
    except AlgebraError as error:
        return state, Skipped(str(error))
    block = appended.update.block
    grown = state.basis.grown(block) if block else state.basis
    record = _record(arrived, appended, bytes_lora=_bytes_as_lora(adapter, rank))
    merged = Merged(block, appended.update.entry, appended.certificate, record)
    return State(state.head + 1, grown), merged


def _record(arrived: Arrived, appended: Appended, *, bytes_lora: int) -> Record:
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
        bytes_lora=bytes_lora,
        metrics=dict(arrived.metrics),
        norm=appended.certificate.norm,
    )


def _bytes_as_lora(adapter: Adapter, rank: int) -> int:
    """What plain LoRA of the federation's rank would send for this task: float32, head included."""
    numbers = sum(rank * sum(factors.shape) for factors in adapter.factors.values())
    return FLOAT32_BYTES * (numbers + sum(tensor.numel() for tensor in adapter.head.values()))
