"""Whose fault it is.

CoordinatorError   the world around the coordinator is not as it must be (folder, port, disk): one sentence
Refused            a caller's request cannot be accepted: an Outcome and one sentence
Fenced             another coordinator has taken over: this one may write nothing more, and ends
"""

from __future__ import annotations

from protos.fedshare.v1.federation_pb2 import Outcome

TRANSIENT = range(30, 40)
"""Outcomes with these numbers ask for another try (see federation.proto)."""


class CoordinatorError(Exception):
    """One sentence for the operator: what, where, what to do."""


class Fenced(Exception):
    """One sentence for the operator. Nothing is tried again, and no entry is to blame."""


class Refused(Exception):
    """One sentence for the caller, with the outcome that a machine reads."""

    def __init__(self, outcome: Outcome, reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


def is_transient(outcome: Outcome) -> bool:
    return outcome in TRANSIENT
