"""What a store raises when it does not answer just now, and what its caller is told: come again."""

from __future__ import annotations

import errno
import logging

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from coordinator.errors import Refused
from protos.fedshare.v1 import federation_pb2 as pb

log = logging.getLogger(__name__)

TROUBLES = (OSError, OperationalError, InterfaceError, InternalError, NoConnection)
"""A disk, a database or a bucket that is full, damaged or away: nobody's request is to blame."""
DISK_FULL = "the coordinator's disk is full: nothing was kept"
POSTGRES_DISK_FULL = "53100"


def come_again(error: Exception) -> Refused:
    """For the caller one sentence; the log has the rest."""
    if disk_is_full(error):
        return Refused(pb.OUTCOME_RETRY_DISK_FULL, DISK_FULL)
    log.error("the store does not answer: %s", error)
    return Refused(
        pb.OUTCOME_RETRY_STORE,
        f"the coordinator's store does not answer just now ({_first_line(error)}): send it again later",
    )


def disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    original = getattr(error, "orig", None)
    return getattr(original, "sqlstate", None) == POSTGRES_DISK_FULL or "disk is full" in str(original)


def _first_line(error: Exception) -> str:
    said = str(getattr(error, "orig", error) or error).strip()
    return said.splitlines()[0][:200] if said else type(error).__name__
