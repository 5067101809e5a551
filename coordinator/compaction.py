"""Compaction: a new generation with fewer columns. Every task is projected on them, all losing least together.

A worker that trains meanwhile loses nothing: what it made for a version of an older generation is lifted with that
one's basis, and appends what the new one lacks.
"""

from __future__ import annotations

from coordinator.catalog import Version
from coordinator.draft import Draft
from coordinator.errors import CoordinatorError
from coordinator.history import History
from coordinator.journal import Position
from coordinator.rebuild import compacted
from coordinator.transition import State
from coordinator.whole import ordered, stored
from protos.fedshare.v1 import federation_pb2 as pb
from share_algo import Basis
from share_algo.certificate import largest


def compaction(history: History, position: Position, command: pb.Compact, head: Version) -> Draft:
    """Raises CoordinatorError, with the reason for the command's verdict, where no column would go."""
    before = history.state_of(head)
    if not before.tasks:
        raise CoordinatorError("there is no task to compact for: the basis keeps what version 0 began with")
    after = compacted(before, command)
    if after is before:
        limit = f"within a tolerance of {command.tolerance:g}" if command.tolerance else f"to {command.size} a side"
        raise CoordinatorError(f"nothing to compact {limit}: the basis has {_columns(before.basis)} columns")
    draft = ordered(position, pb.VERSION_KIND_COMPACT, _note(before, after), after.basis)
    return stored(history, after, head, draft)


def _note(before: State, after: State) -> str:
    error = largest(task.certificate for task in after.tasks.values())
    sizes = f"{_columns(before.basis)} columns became {_columns(after.basis)}"
    return f"{sizes}; {len(after.tasks)} tasks, each within {error:.1e} of what was merged"


def _columns(basis: Basis) -> str:
    """Out and in, largest over modules."""
    return " and ".join(str(max((w[side] for w in basis.widths().values()), default=0)) for side in (0, 1))
