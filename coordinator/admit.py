"""All refusals of updates happen here, before the journal. Below it every entry is merged or skipped with a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

from coordinator.catalog import VERSION_MAX
from coordinator.errors import Refused
from protos.chunks import BLOB_BYTES_MAX
from protos.fedshare.v1 import federation_pb2 as pb
from protos.labels import IN_NO_LABEL
from protos.names import NAME, no_name
from protos.policy import policy_of, replaces
from share_algo import Basis, Update

UPDATE_ID = re.compile(r"[0-9a-f]{32}")
DIGEST = re.compile(r"[0-9a-f]{64}")
LABELS_MAX = 10_000
LABELS_BYTES_MAX = 256 << 10
"""Of all labels of a task: every manifest that names it holds them."""
METRICS_MAX = 100
HEAD_NUMBERS_MAX = 50_000_000
HEADER_BYTES = 1 << 20
"""What the safetensors header of an update may take beside its numbers."""


def name(what: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"{what} {no_name(value)}")


def federation(spec: pb.FederationSpec, federation_id: str) -> None:
    if federation_id != spec.federation_id:
        raise Refused(
            pb.OUTCOME_REFUSED_FEDERATION,
            f"this is the federation {spec.name!r} ({spec.federation_id[:8]}), the caller's is {federation_id[:8]!r}",
        )


def base_model(spec: pb.FederationSpec, fingerprint: str) -> None:
    if fingerprint != spec.base.fingerprint:
        raise Refused(
            pb.OUTCOME_REFUSED_BASE_MODEL,
            f"the caller's base model ({fingerprint[:12] or 'none'}) is not this federation's {spec.base.name}"
            f" ({spec.base.fingerprint[:12]}): their weights differ",
        )


def no_such_version(number: int) -> NoReturn:
    raise Refused(pb.OUTCOME_REFUSED_BASE_VERSION, f"version {number} does not exist in this federation")


def base_is_gone(number: int, why: str) -> NoReturn:
    raise Refused(
        pb.OUTCOME_REFUSED_BASE_GONE,
        f"version {number}, for which it was made, was {why}: fit again on the head",
    )


def metrics(values: Mapping[str, float]) -> None:
    if len(values) > METRICS_MAX or not all(NAME.fullmatch(key) for key in values):
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"at most {METRICS_MAX} metrics, each named like a task")
    for key, value in values.items():
        if not abs(value) < float("inf"):
            raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"the metric {key} is {value}, not a finite number")


def update_bytes_max(spec: pb.FederationSpec) -> int:
    """No honest update is larger: every direction of every module new, all ranks there may be, the largest head."""
    numbers = sum(2 * spec.rank * (m.out_features + m.in_features + 2 * spec.rank) for m in spec.modules)
    if not all(map(replaces, spec.policies)):
        sides = [(m.out_features, m.in_features) for m in spec.modules]
        numbers += sum(min(N, D) * (N + D) for N, D in sides)
    return min(4 * (numbers + HEAD_NUMBERS_MAX) + HEADER_BYTES, BLOB_BYTES_MAX)


def header(spec: pb.FederationSpec, header: pb.UpdateHeader) -> None:
    """All that can be seen before the blob has come."""
    if not UPDATE_ID.fullmatch(header.update_id) or not DIGEST.fullmatch(header.digest):
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, "update_id must have 32 hex digits and digest 64")
    name("worker", header.worker)
    name("task", header.task)
    if header.warm_start:
        name("warm_start", header.warm_start)
    federation(spec, header.federation_id)
    base_model(spec, header.base_fingerprint)
    metrics(header.metrics)
    if header.base_version > VERSION_MAX:
        no_such_version(header.base_version)
    _said_of_rows(header.labels)
    if not 0 < header.nbytes <= update_bytes_max(spec):
        raise Refused(
            pb.OUTCOME_REFUSED_TOO_LARGE,
            f"an update of {header.nbytes} bytes; in this federation they have 1 to {update_bytes_max(spec)}",
        )


def _said_of_rows(labels: Sequence[str]) -> None:
    if len(labels) > LABELS_MAX:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"{len(labels)} labels; at most {LABELS_MAX} are kept")
    if (nbytes := sum(len(label.encode()) for label in labels)) > LABELS_BYTES_MAX:
        why = f"the labels have {nbytes} bytes in all; at most {LABELS_BYTES_MAX} are kept: shorten them"
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, why)
    if odd := [label for label in labels if IN_NO_LABEL.search(label)]:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"the label {odd[0][:100]!r} holds a control character")


def command(request: pb.CommandRequest) -> None:
    """What can be seen of a command before its turn comes."""
    kind = request.WhichOneof("command")
    if not UPDATE_ID.fullmatch(request.command_id) or kind is None:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, "a command has an id of 32 hex digits, and says what to do")
    if kind == "forget":
        task, worker = request.forget.task, request.forget.worker
        if bool(task) == bool(worker):
            raise Refused(pb.OUTCOME_REFUSED_MALFORMED, "forget either a task or a worker")
        name("task" if task else "worker", task or worker)
    if kind == "compact":
        _compact(request.compact)
    if kind == "judge" and not UPDATE_ID.fullmatch(request.judge.update_id):
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, "a judgement names an update by the 32 hex digits of its id")
    if kind == "collect" and not request.collect.keep:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, "a collection keeps at least 1 version")


def _compact(command: pb.Compact) -> None:
    if bool(command.size) == bool(command.tolerance):
        raise Refused(
            pb.OUTCOME_REFUSED_MALFORMED, "compact either to a size of 1 or more columns or within a tolerance"
        )
    if not 0 <= command.tolerance < 1:
        raise Refused(pb.OUTCOME_REFUSED_MALFORMED, f"a tolerance is between 0 and 1, not {command.tolerance:g}")


def update(spec: pb.FederationSpec, task: str, update: Update, base: Basis) -> None:
    """Every module is there, and every shape fits the base version's basis."""
    modules = {m.name: (m.out_features, m.in_features) for m in spec.modules}
    coefficients = update.entry.coefficients
    if odd := sorted(modules.keys() ^ coefficients.keys()) or sorted(update.block.keys() - modules.keys()):
        _wrong_shape(odd[0], "is in the update or in the federation, but not in both")
    if sum(t.numel() for t in update.entry.head.values()) > HEAD_NUMBERS_MAX:
        raise Refused(pb.OUTCOME_REFUSED_TOO_LARGE, f"the head has more than {HEAD_NUMBERS_MAX} numbers")
    widths = base.widths()
    for module, (N, D) in modules.items():
        K, L = widths.get(module, (0, 0))
        if new := update.block.get(module):
            if (new.out_NK.shape[0], new.in_DL.shape[0]) != (N, D):
                _wrong_shape(module, f"new directions for {new.out_NK.shape[0]} x {new.in_DL.shape[0]}, not {N} x {D}")
            K, L = K + new.widths[0], L + new.widths[1]
        if coefficients[module].widths != (K, L):
            _wrong_shape(module, f"coefficients for {coefficients[module].widths} columns, not {(K, L)}")
        most = rank_max(spec, task, (K, L))
        if not 1 <= coefficients[module].P_KR.shape[1] <= most:
            _wrong_shape(module, f"rank {coefficients[module].P_KR.shape[1]}; here it is 1 to {most}")


def labels(task: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Heads are added up row by row, so that rows must mean the same."""
    if list(wanted) != list(known):
        ours, theirs = (", ".join(names)[:200] for names in (known, wanted))
        raise Refused(
            pb.OUTCOME_REFUSED_LABELS,
            f"the rows of the head of {task} mean {ours} in this federation, and {theirs} in this update:"
            " the same labels, in the same order, can be added up",
        )


def rank_max(spec: pb.FederationSpec, task: str, widths: tuple[int, int]) -> int:
    """A sum has more ranks than its parts, at most as many as there are columns; what begins with it may have them."""
    summed = not replaces(policy_of(spec.policies, task))
    return max(spec.rank, min(widths)) if summed else spec.rank


def _wrong_shape(module: str, what: str) -> None:
    raise Refused(pb.OUTCOME_REFUSED_SHAPE, f"{module}: {what}")
