"""What a task, a worker, a federation or a metric may be called, for whoever says it and for whoever keeps it."""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def no_name(said: str) -> str:
    """The end of a sentence about one that does not match."""
    return f"{said[:100]!r} is not a name: use 1 to 100 letters, digits, '.', '_' or '-', not starting with '.' or '-'"
