"""What is known about a task's error: true, or an upper bound, never a hope.

A compaction projects inside the space in which the task was kept: its error is orthogonal to the one before and they
compose exactly, error^2 = first^2 + second^2. Where directions were added after the task (the new space is not inside
the old one), or where something is no projection (a smaller rank, averaging, quantising), the first error may lean on
the second: then the triangle inequality bounds the sum, and that part of the error is `loose` from then on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ROUNDING = 1e-6
"""Allowance, relative to ||dW||, for storing a rotated basis and coefficients in float32."""


@dataclass(frozen=True)
class Certificate:
    """||dW - kept||_F <= error, where ||dW||_F = norm, over all modules together. dW: as it first arrived.

    loose: the part of the error that is not orthogonal to what is kept.
    """

    norm: float
    error: float
    loose: float = 0.0
    is_bound: bool = False

    @property
    def relative_error(self) -> float:
        return self.error / self.norm if self.norm else 0.0

    @property
    def weight(self) -> float:
        """1 / ||dW||^2, so that no task is favoured for being loud (0 for a task that is zero)."""
        return 1 / self.norm**2 if self.norm else 0.0

    def projected(self, error: float, *, nested: bool = True) -> Certificate:
        """After one more orthogonal projection, which lost `error` of what was kept.

        nested: its space lies inside the one in which the task was kept.
        """
        loose = self.loose if nested else self.error
        both = math.sqrt(self.error**2 + error**2 + 2 * loose * error)
        is_bound = self.is_bound or min(loose, error) > ROUNDING * self.norm
        return Certificate(self.norm, both + ROUNDING * self.norm, loose, is_bound)

    def moved(self, error: float) -> Certificate:
        """After any change of at most `error`: triangle inequality."""
        is_bound = self.is_bound or min(self.error, error) > ROUNDING * self.norm
        return Certificate(self.norm, self.error + error, self.loose + error, is_bound)

    def summed(self, error: float) -> Certificate:
        """Of a sum whose parts were wrong by `error`, in all, before it was kept. norm: of the parts as they are.

        The true sum may be quieter by as much: it counts as that quiet, so that no relative error is too small.
        """
        if not error:
            return self
        quiet = max(self.norm - error, ROUNDING * self.norm)
        is_bound = self.is_bound or error > ROUNDING * self.norm
        return Certificate(quiet, self.error + error, self.loose + error, is_bound)


@dataclass(frozen=True)
class ErrorsReport:
    """What an operation on all tasks did. `errors`: what it alone cost each task it changed, relative; exact.

    Bytes before and after, in the form that each subspace is stored in.
    """

    errors: Mapping[str, float]
    certificates: Mapping[str, Certificate]
    nbytes_before: int
    nbytes: int
    seconds: float

    @property
    def largest_relative_error(self) -> float:
        """Of all tasks, against what was once merged: exact where the certificates are, otherwise a bound."""
        return largest(self.certificates.values())


def largest(certificates: Iterable[Certificate]) -> float:
    """The largest relative error (0 for none): of each task at most this."""
    return max((c.relative_error for c in certificates), default=0.0)
