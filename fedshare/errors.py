"""What a user did or met, in one sentence."""

from __future__ import annotations

import sys

_ONE_SENTENCE = {
    "fedshare.errors": "UserError",
    "coordinator.errors": "CoordinatorError",
    "workers.errors": "WorkerError",
    "share_algo.errors": "AlgebraError",
}


class UserError(Exception):
    """One sentence: what, where, what to do."""


class Stopped(Exception):
    """One sentence for who waits no longer: what goes on all the same, and how to ask for it."""


def is_one_sentence(error: BaseException) -> bool:
    """Whether its message is all that a user needs. Only a room that is loaded can have raised anything."""
    kinds = (getattr(sys.modules[room], kind) for room, kind in _ONE_SENTENCE.items() if room in sys.modules)
    return isinstance(error, tuple(kinds))
