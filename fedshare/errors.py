"""What a user did or met, in one sentence."""

from __future__ import annotations

import errno
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


def one_sentence(error: BaseException) -> str:
    """All that a user needs to know of it; empty where it is ours to mend."""
    rooms = (room for room in _ONE_SENTENCE if room in sys.modules)  # no other can have raised anything
    if isinstance(error, tuple(getattr(sys.modules[room], _ONE_SENTENCE[room]) for room in rooms)):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        file = error.filename or ("what is printed" if error.errno in (errno.ENOSPC, errno.EIO) else "")
        return f"cannot use {str(file)[:300]}: {error.strerror}" if file else ""
    return ""
